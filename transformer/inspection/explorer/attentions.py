"""The attentions of a model: what they are called, what they may see, and what is added to their scores."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from transformer.models.config import ModelConfig, Stack
from transformer.nn.positions import RelativeBias, alibi_bias
from transformer.ops import masks


@dataclasses.dataclass(frozen=True)
class Attention:
    """Self-attention of a stack, or cross-attention of the decoder.

    Attributes:
      name: "encoder", "decoder" or "decoder/cross".
      role: of the stack that it is in, whose tokens ask.
      keys: the role of the stack whose tokens are asked.
    """

    name: str
    role: str
    keys: str

    @property
    def crosses(self) -> bool:
        """Whether keys are another stack's."""
        return self.role != self.keys

    def site(self, layer: int | str, name: str) -> str:
        """The full name of one of its sites."""
        return f"{self.role}/{layer}/{'cross/' if self.crosses else ''}{name}"

    def before(self, layer: int) -> str:
        """The site of the residual that it adds to."""
        return f"{self.role}/{layer}/{'residual_mid' if self.crosses else 'residual_pre'}"

    def stack(self, config: ModelConfig) -> Stack:
        """The configuration of the stack that it is in."""
        return getattr(config, self.role)

    def sizes(self, config: ModelConfig) -> tuple[int, int, int]:
        """H, G and K."""
        stack = self.stack(config)
        return stack.attention.heads, config.kv_heads(stack), config.head_width(stack)

    def visible(self, config: ModelConfig, queries: int, keys: int) -> np.ndarray:
        """Booleans `[period, T, S]`, True = may attend; layer l has the view l % period."""
        windows = self.stack(config).attention.windows or (0,)
        if self.role == "encoder" or self.crosses:
            return np.ones((1, queries, keys), bool)
        places = jnp.arange(queries)
        causal = masks.causal(places, places)
        views = [masks.combine(causal, masks.window(places, places, width) if width else None) for width in windows]
        return np.concatenate([np.asarray(view)[0] for view in views])

    def bias(self, config: ModelConfig, params: dict, queries: int, keys: int) -> np.ndarray | None:
        """What is added to scores, `[H, T, S]`, the same in every layer; None if nothing is."""
        stack = self.stack(config)
        if self.crosses or stack.position.kind not in ("alibi", "relative"):
            return None
        places = jnp.arange(queries)[None], jnp.arange(keys)[None]
        if stack.position.kind == "alibi":
            return np.asarray(alibi_bias(stack.attention.heads, *places))[0]
        table = RelativeBias(config, stack, bidirectional=self.role == "encoder")
        return np.asarray(table.apply({"params": params[self.role]["relative"]}, *places))[0]


Layers = dict[Attention, tuple[int, ...]]


def attentions(config: ModelConfig) -> list[Attention]:
    """Every attention of a model, encoder first."""
    found = [Attention(role, role, role) for role in ("encoder", "decoder") if getattr(config, role) is not None]
    both = config.encoder is not None and config.decoder is not None
    return [*found, Attention("decoder/cross", "decoder", "encoder")] if both else found
