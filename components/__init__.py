"""The stages of a run: each reads the folders of earlier stages and writes one of its own. The only code that runs on Ray."""
