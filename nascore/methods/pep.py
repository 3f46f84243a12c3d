"""PEP: entries of the tables are pruned by thresholds of their own (Liu et al., 2021).

While it is searched an entry e is sign(e) max(0, |e| - sigmoid(s)), s learned with the weights; then the model is
trained anew from the first weights of its tables with the entries that survived. Granularity is that for Criteo, a
threshold for each entry. Ours: where the authors stop at the first step with few enough entries, a number of steps is
trained and the share to keep is cut exactly, by |e| - sigmoid(s). Thresholds begin at -8, not -150, whose sigmoid and
slope are 0 in single precision.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nascore.click_net import Inputs
from nascore.methods._gated import PrunedMethod
from nascore.net import Net
from nascore.pruned_net import PrunedNet, SearchedNet
from nascore.schema import Schema
from nascore.space import Space
from nascore.sparse import Tables


class _Searched(SearchedNet):
    initial: Tensor

    def __init__(self, method: "PEP", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding, method.layers)
        self.share = method.share
        self.thresholds = Tables(self.sizes, self.width)
        nn.init.constant_(self.thresholds.weight, method.threshold)
        self.register_buffer("initial", self.matrix.detach().clone())

    def searched(self, x: Inputs) -> Tensor:
        x_BK = x["kept"]
        least_BND: Tensor = self.thresholds(x["ids"]).sigmoid()
        return x_BK.sign() * (x_BK.abs() - least_BND.flatten(1)).relu()

    def found(self) -> Tensor:
        above = self.matrix.detach().abs() - self.thresholds.weight.detach().sigmoid()
        kept = max(1, round(self.share * above.numel()))
        least = above.flatten().kthvalue(above.numel() - kept + 1).values
        found = (above > least).flatten()
        found[(above == least).flatten().nonzero()[: kept - int(found.sum())]] = True  # of those alike the first
        return found.view_as(above).to(above.dtype)

    def give(self, net: PrunedNet) -> None:
        super().give(net)
        net.tables.take(self.initial)


@dataclass(frozen=True, kw_only=True)
class PEP(PrunedMethod):
    """A perceptron over vectors of which some entries stay.

    Args:
        share: Of all entries of the tables, how many stay.
        threshold: What thresholds are at first, before the sigmoid.
    """

    share: float = 0.5
    threshold: float = -8.0

    entries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.share_of("share")

    @property
    def label(self) -> str:
        return "PEP"

    def searching(self, schema: Schema, space: Space) -> Net:
        return _Searched(self, schema, space)
