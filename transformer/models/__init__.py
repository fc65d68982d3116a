"""Models: their configs, the published ones by name, and where each one's parameters are."""

from transformer.models.config import DTYPES, Attention, Init, ModelConfig, Norm, Position, Readout, Scaling, Stack
from transformer.models.feed_forward import Experts, Mlp
from transformer.models.ledger import Ledger, Row, ledger
from transformer.models.transformer import Transformer
from transformer.models.zoo import get, names

__all__ = [
    "DTYPES",
    "Attention",
    "Experts",
    "Init",
    "Ledger",
    "Mlp",
    "ModelConfig",
    "Norm",
    "Position",
    "Readout",
    "Row",
    "Scaling",
    "Stack",
    "Transformer",
    "get",
    "ledger",
    "names",
]
