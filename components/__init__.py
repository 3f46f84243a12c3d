"""The stages of a run: each reads the folders of earlier ones and writes its own. The only code that runs on Ray."""
