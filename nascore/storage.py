"""What storage that does not serve is told as."""


class StorageError(Exception):
    """Storage that refuses, is full, or failed at every try: which file, what failed, what to do next.

    No OSError: fsspec takes one that is raised while it lists a folder for an empty folder.
    """
