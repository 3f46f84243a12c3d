"""In what order the stages of a run may be done, as far as they can be told apart: they may be asked for one by one."""

from collections.abc import Sequence

from components.folder import Folder

NEEDS = {
    "supernet": "prepare",
    "search": "supernet",
    "diagnose": "supernet",
    "derive": "supernet",
    "tune": "search",
    "retrain": "search",
    "evaluate": "retrain",
}
READERS = {
    "search": ("tune", "retrain"),
    "derive": ("tune", "retrain"),
    "tune": ("retrain",),
}
"""What each stage reads, and who reads it: a reader that is done did so without it, and will not again."""


def check(folder: Folder, stages: Sequence[str], searched: bool = True) -> None:
    """Raise for a stage that comes before what it reads, or after what reads it.

    stages: those asked for, in their order. searched: whether the run's method has a search.
    """
    begun = folder.exists("run.json")
    done = {stage for stage in {*NEEDS, *NEEDS.values()} if begun and (folder / stage).done}
    found = not searched or (folder / "search").exists("candidates.json")
    known = {*done, "search"} if found else {*done}
    for stage in stages:
        if stage in done:
            continue
        if (needed := NEEDS.get(stage)) and needed not in known:
            raise ValueError(f"{folder.url}: {stage} reads what {needed} makes, which is not done: do that first")
        late = [reader for reader in READERS.get(stage, ()) if reader in done]
        if late:
            raise ValueError(
                f"{folder.url}: {stage} comes too late, {late[0]} was done without it. Leave it out of --stages, or "
                f"remove the folders {late[0]} and of all stages after it, which are then done anew"
            )
        known.add(stage)
