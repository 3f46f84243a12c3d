"""BST: GoogleDNN whose history goes through a transformer encoder layer (Chen et al., 2019), in AutoTower's sizes.

Heads, dropout and the leaky ReLU are those of BST; it gives no width of the feed-forward net. AutoTower's Table 4 does:
its parameters minus GoogleDNN's are one encoder layer with 2,048 units and learned positions, pooled by an attention
with an output map. That gives its figures on MovieLens and Amazon exactly and on Yelp to .01 M.
"""

from dataclasses import dataclass

from nascore.methods.googlednn import GoogleDNN, PlainTowers
from nascore.net import Net
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Space
from nascore.two_tower import HIDDEN


@dataclass(frozen=True, kw_only=True)
class BST(GoogleDNN):
    """GoogleDNN with an encoded history.

    Args:
        heads: Of the encoder's attention; they share the width of an event.
        feed_forward: Units of the encoder's feed-forward net.
        dropout: Behind the attention and behind the feed-forward net.
        pool: The operator that pools the encoded history.
    """

    heads: int = 8
    feed_forward: int = 2048
    dropout: float = 0.2
    pool: str = "self_attention_pool:output=true"

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, heads=1, feed_forward=1, dropout=0)

    def net(self, schema: Schema, space: Space) -> Net:
        if not schema.history:
            raise ValueError("BST encodes a user's past: name the features of a history, or take googlednn")
        encoder = f"heads={self.heads},hidden={self.feed_forward},dropout={self.dropout},pool={self.pool}"
        spec = f"transformer_pool:{encoder}"
        return PlainTowers(schema, space, self.embedding, HIDDEN[self.size], self.output, spec)
