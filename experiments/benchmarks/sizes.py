"""The models that are benchmarked, by name: real ones, and for `tiny` ones that only show that everything runs."""

from __future__ import annotations

import dataclasses

from transformer import models
from transformer.models import Attention, Mlp, ModelConfig, Norm, Position, Stack

TINY = {"char": (2, 16, 2, 16), "gpt2": (2, 16, 2, 64), "deep": (2, 16, 2, 16)}  # depth, width, heads, length


def config(name: str, *, tiny: bool = False, depth: int | None = None, **fields) -> ModelConfig:
    """A model without dropout, as everything that is compared here is.

    Args:
      name: "char", nanoGPT's character model of 10.7 million parameters (github.com/karpathy/nanoGPT,
        config/train_shakespeare_char.py); "gpt2", GPT-2 of 124 million; "deep", layers of width 256.
      depth: layers, where not the model's own.
      fields: of the `ModelConfig`, such as `dtype`.
    """
    made = _gpt2() if name == "gpt2" else _gpt(*{"char": (6, 384, 6, 256), "deep": (12, 256, 4, 64)}[name])
    if tiny:
        layers, width, heads, length = TINY[name]
        attention = dataclasses.replace(made.decoder.attention, heads=heads)
        mlp = dataclasses.replace(made.decoder.mlp, width=4 * width)
        decoder = dataclasses.replace(made.decoder, depth=layers, attention=attention, mlp=mlp)
        made = dataclasses.replace(made, vocab=65, width=width, length=length, decoder=decoder)
    if depth is not None:
        made = dataclasses.replace(made, decoder=dataclasses.replace(made.decoder, depth=depth))
    return dataclasses.replace(made, **fields)


def _gpt(depth: int, width: int, heads: int, length: int) -> ModelConfig:
    """As nanoGPT trains: no biases, and GELU as it is defined."""
    stack = Stack(
        depth,
        Attention(heads),
        Mlp(4 * width, "gelu", gated=False),
        Norm("layer", epsilon=1e-5),
        position=Position("learned"),
    )
    return ModelConfig(65, width, decoder=stack, length=length)


def _gpt2() -> ModelConfig:
    published = models.get("gpt2-small")
    attention = dataclasses.replace(published.decoder.attention, dropout=0.0)
    return dataclasses.replace(
        published, decoder=dataclasses.replace(published.decoder, attention=attention, dropout=0.0)
    )
