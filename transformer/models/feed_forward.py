"""The configuration of feed-forward layers: dense ones, and mixtures of experts."""

from __future__ import annotations

import dataclasses
import math

from transformer.models.checks import check_probability, check_types, one_of, require

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


@dataclasses.dataclass(frozen=True)
class Experts:
    """Feed-forward layers side by side, of which a router picks a few for each token (see `ops.routing`).

    With a cache, as in decoding, `capacity` is not read: every token is served.
    """

    count: int = 8  # N
    active: int = 2  # how many a token uses: those with the highest logits of the router
    normalize: bool = True  # their weights are a softmax over those (Mixtral), otherwise over all N (Switch)
    capacity: float | None = None  # each has room for ceil(capacity x active x T / count) of a row's T; None: for all
    balance: float = 0.01  # weight of the load-balancing loss
    router_z: float = 0.001  # weight of the squared log of the router's normaliser

    def __post_init__(self):
        check_types(self, "mlp.experts.")
        require(self.count > 0, "mlp.experts.count", self.count, "it must be positive")
        fix = f"a token uses at least 1 and at most count={self.count}"
        require(1 <= self.active <= self.count, "mlp.experts.active", self.active, fix)
        if self.capacity is not None:
            fix = "it must be positive and finite, or None where nothing is dropped"
            require(0 < self.capacity < float("inf"), "mlp.experts.capacity", self.capacity, fix)
        for name in ("balance", "router_z"):
            fix = "it must be finite, 0 or more"
            require(0 <= getattr(self, name) < float("inf"), f"mlp.experts.{name}", getattr(self, name), fix)

    def places(self, length: int) -> int | None:
        """C: the tokens of a row of `length` that each expert has room for; None: all."""
        if self.capacity is None:
            return None
        return min(length, math.ceil(self.capacity * self.active * length / self.count))


@dataclasses.dataclass(frozen=True)
class Mlp:
    """The feed-forward half of a block: up, activation, down; gated: activation(gate) * up, then down."""

    width: int | None = None  # None: 4 x model width, or 8/3 x when gated, rounded up to a multiple of 32
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    dropout: float = 0.0  # on the inner activations
    experts: Experts | None = None  # each of this width; None: one layer that every token uses

    def __post_init__(self):
        check_types(self, "mlp.")
        if self.width is not None:
            require(self.width > 0, "mlp.width", self.width, "it must be positive")
        one_of("mlp.activation", self.activation, ACTIVATIONS)
        check_probability("mlp.dropout", self.dropout)
