"""What a night does: skip, refresh, warm or cold, by documented rules from recorded numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

from nascore.plugins import bounded

Decision = Literal["skip", "refresh", "warm", "cold"]
FEWEST = 3
"""Nights whose losses say how far nights are apart."""


@dataclass(frozen=True)
class Rules:
    """When a night does what; the first rule that holds decides.

    Args:
        over: What is compared with the rows that the champion was trained on: the newest day, or the whole window.
        ignore: Features whose drift does not count.
        severe: Population stability index of a feature, beyond chance, from which on nothing old is used: cold.
        useless: The champion's loss over that of always saying the day's click rate from which on it is cold.
        drift: Population stability index, beyond chance, from which on a feature has drifted.
        features: So many drifted features, the label counting as one, make it warm.
        sigmas: Standard deviations above its past nights beyond which the champion's loss makes it warm.
        slack: A share of its mean loss that is allowed on top.
        search: Nights since the last search, promoted or not, after which it is warm; 0 for never.
        fresh: Nights since the newest day of the champion, and of what was tried since, up to which nothing is done;
            beyond it is refresh.
    """

    over: Literal["day", "window"] = "day"
    ignore: tuple[str, ...] = ()
    severe: float = 2.0
    useless: float = 1.0
    drift: float = 0.2
    features: int = 1
    sigmas: float = 3.0
    slack: float = 0.005
    search: int = 14
    fresh: int = 3

    def __post_init__(self) -> None:
        bounded(self, severe=0, useless=0, drift=0, features=1, sigmas=0, slack=0, search=0, fresh=0)


def bound(history: Sequence[Mapping[str, float]], error: float, rules: Rules) -> float:
    """The loss above which the champion does worse than on its past nights.

    history: of each night its "relative" loss and the standard error of that; error: tonight's.
    """
    values = [one["relative"] for one in history]
    mean = sum(values) / len(values)
    variance = error**2 + sum(one["error"] ** 2 for one in history) / len(history) ** 2
    if len(values) >= FEWEST:
        variance += sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean + rules.sigmas * sqrt(variance) + rules.slack * mean


def decide(facts: Mapping[str, Any], rules: Rules) -> tuple[Decision, str]:
    """The decision and the rule that made it, in a sentence."""
    if len(facts["window"]) < 2:
        return "skip", "there are not two complete days"
    if not facts["new"]:
        return "skip", f"no complete day after {facts['newest_day']}, which an earlier night has seen"
    champion = facts["champion"]
    if champion is None:
        return "cold", "there is no champion"
    if facts["differs"]:
        return "cold", f"the champion cannot be compared, as these differ: {', '.join(facts['differs'])}"
    if facts["method"]:
        return "cold", f"{facts['method']} than what the champion was searched by"
    drifted = {name: one["excess"] for name, one in facts["drift"].items() if name not in rules.ignore}
    loss = facts["loss"]
    if worst := [f"{name} {excess:.2f}" for name, excess in drifted.items() if excess >= rules.severe]:
        return "cold", f"severe drift: {', '.join(worst)}, {rules.severe:g} or more"
    if loss["relative"] >= rules.useless:
        return "cold", f"the champion's loss is {loss['relative']:.3f} of the click rate's, {rules.useless:g} or more"
    found = [f"{name} {excess:.2f}" for name, excess in drifted.items() if excess >= rules.drift]
    if len(found) >= rules.features:
        return "warm", f"drift: {', '.join(found)}, {rules.drift:g} or more"
    if loss["bound"] is not None and loss["relative"] > loss["bound"]:
        return "warm", f"the champion's loss is {loss['relative']:.4f} of the click rate's, above {loss['bound']:.4f}"
    if rules.search and champion["searched_ago"] >= rules.search:
        return "warm", f"the last search was {champion['searched_ago']} days ago, {rules.search} or more"
    if champion["tried_ago"] > rules.fresh:
        since = "" if champion["tried_ago"] == champion["age"] else f", the last challenger {champion['tried_ago']}"
        if champion["refreshable"]:
            return "refresh", f"the champion is {champion['age']} days old{since}, more than {rules.fresh}"
        return "warm", f"the champion is {champion['age']} days old{since} and has no single architecture to retrain"
    return "skip", f"the champion is {champion['age']} days old and nothing drifts"
