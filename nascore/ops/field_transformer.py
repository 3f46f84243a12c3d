"""A transformer layer over fields, as NASRec's public code has in place of the paper's attention."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import EVERY, Elastic, Live
from nascore.plugins import bounded

SCALE = 0.17


class FieldTransformer(Elastic):
    """Linear(N -> M), norm; attention of `heads` heads and a hidden layer of width E, each added and normalised.

    The last two norms are over the E dimensions of a field and start at scale 0.17. E is a multiple of the heads.
    """

    signature: ClassVar[str] = "BEN -> BEM"
    examples: ClassVar[tuple[str, ...]] = ("field_transformer:1", "field_transformer:1,norm=false")

    def __init__(self, heads: int = 8, norm: bool = True, *, E: int, N: int, M: int) -> None:
        super().__init__()
        self.heads, self.width = heads, E
        bounded(self, heads=1)
        if E % heads:
            raise ValueError(f"field_transformer: a width of {E} cannot be shared by {heads} heads")
        self.give_map("map", "MN", M, N, bias=not norm)
        if norm:
            self.give_norm("map_norm", "M", M)
        for name in ("query", "key", "value", "mixed", "hidden", "out"):
            self.give_map(name, "ee", E, E)
        for name in ("first_norm", "last_norm"):
            self.give_norm(name, "e", E)
            nn.init.constant_(self.whole(f"{name}.weight"), SCALE)

    def forward(self, x_BEN: Tensor, live: Live = EVERY) -> Tensor:
        mapped_BEM = self.normed("map_norm", self.linear("map", x_BEN, live), live)
        x_BME = mapped_BEM.transpose(1, 2)
        q, k, v = (self._heads(self.linear(name, x_BME, live)) for name in ("query", "key", "value"))
        attended_BME = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BME = self.normed("first_norm", x_BME + self.linear("mixed", attended_BME, live), live)
        hidden_BME = self.linear("hidden", x_BME, live).relu()
        x_BME = self.normed("last_norm", x_BME + self.linear("out", hidden_BME, live), live)
        return x_BME.transpose(1, 2)

    def _heads(self, x_BME: Tensor) -> Tensor:
        head_BHMS: Tensor = x_BME.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return head_BHMS

    def macs(self, live: Live = EVERY) -> int:
        fields, inputs = self.shape("map.weight", live)
        return self.width * inputs * fields + 6 * fields * self.width**2 + self.core_macs(live)

    def core_macs(self, live: Live = EVERY) -> int:
        return 2 * self.shape("map.weight", live)[0] ** 2 * self.width
