"""The order of the stages: each pipeline is one function that gives a run; the file's name is its name.

To add one: write `pipelines/<name>.py` with a function `<name>(…) -> Run`. Its parameters are the command line's.
"""
