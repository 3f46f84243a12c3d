"""The run as one page, `report/index.html`: what was found, whether it is better, and how far to trust the search."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import groupby
from typing import Any

from components.pictures import (
    COLOURS,
    NONE,
    count,
    drawing,
    duration,
    interval,
    number,
    page,
    plot,
    short,
    table,
    views,
)
from components.run import Run
from nascore.cost import Cost
from nascore.space import Genotype, parse

SHOWN = 2_500
CUTOFFS = ("", "10", "50")
UNITS = {"macs": "MACs per example", "params": "parameters", "table_params": "parameters in tables"}
SMALLER_IS_BETTER = ("loss", "log_loss")
Row = dict[str, Any]
