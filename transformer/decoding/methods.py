"""How the next token is chosen: small frozen values, checked when built and hashable, as `jit` wants them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from transformer.decoding.whole import whole
from transformer.ops import sampling


class Method(Protocol):
    """What `generate`, `stream` and `speculate` take: a hashable callable from logits to tokens.

    Attributes:
      random: whether the choice depends on the key.
    """

    random: ClassVar[bool]

    def filter(self, logits: jax.Array) -> jax.Array:
        """Logits `[..., V]` of the distribution that a token is drawn from, -inf where it never is."""

    def __call__(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Logits `[..., V]` and one key to tokens `[...]` int32, with probability softmax(filter(logits))."""


class _Draw:
    """A draw from softmax(filter(logits)), whatever the filter."""

    random: ClassVar[bool] = True

    def __call__(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Logits `[..., V]` and a key to tokens `[...]`."""
        return sampling.categorical(key, self.filter(logits))


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The likeliest token, the lowest id among equals; the key is not read."""

    random: ClassVar[bool] = False

    def filter(self, logits: jax.Array) -> jax.Array:
        """Logits `[..., V]` with all but the likeliest token at -inf."""
        likeliest = jnp.arange(logits.shape[-1]) == sampling.greedy(logits)[..., None]
        return jnp.where(likeliest, logits, -jnp.inf)

    def __call__(self, logits: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits `[..., V]` to tokens `[...]`."""
        return sampling.greedy(logits)


@dataclasses.dataclass(frozen=True)
class Temperature(_Draw):
    """A draw from softmax(logits / temperature): below 1 sharper than the model's distribution, above 1 flatter."""

    temperature: float = 1.0

    def __post_init__(self):
        _check_temperature(self.temperature)

    def filter(self, logits: jax.Array) -> jax.Array:
        """Logits `[..., V]` to those of the distribution that is drawn from."""
        return sampling.temperature(logits, self.temperature)


@dataclasses.dataclass(frozen=True)
class TopK(_Draw):
    """A draw among the `k` likeliest tokens (Fan et al. 2018, arXiv:1805.04833)."""

    k: int
    temperature: float = 1.0

    def __post_init__(self):
        whole("k", self.k)
        _check_temperature(self.temperature)

    def filter(self, logits: jax.Array) -> jax.Array:
        """Logits `[..., V]` to those of the distribution that is drawn from."""
        return sampling.top_k(sampling.temperature(logits, self.temperature), self.k)


@dataclasses.dataclass(frozen=True)
class TopP(_Draw):
    """A draw from the nucleus, the fewest likeliest tokens that hold `p` of the probability after the temperature
    (Holtzman et al. 2019, arXiv:1904.09751)."""

    p: float
    temperature: float = 1.0

    def __post_init__(self):
        _check_share(self.p)
        _check_temperature(self.temperature)

    def filter(self, logits: jax.Array) -> jax.Array:
        """Logits `[..., V]` to those of the distribution that is drawn from."""
        return sampling.top_p(sampling.temperature(logits, self.temperature), self.p)


@dataclasses.dataclass(frozen=True)
class MinP(_Draw):
    """A draw among tokens at least `p` times as probable as the likeliest (Nguyen et al. 2024, arXiv:2407.01082).

    Who is kept is decided before the temperature, so that a high temperature spreads the choice over plausible tokens
    without admitting implausible ones.
    """

    p: float
    temperature: float = 1.0

    def __post_init__(self):
        _check_share(self.p)
        _check_temperature(self.temperature)

    def filter(self, logits: jax.Array) -> jax.Array:
        """Logits `[..., V]` to those of the distribution that is drawn from."""
        return sampling.temperature(sampling.min_p(logits, self.p), self.temperature)


def _check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature={temperature}: it must be positive and finite; for temperature 0 use Greedy()")


def _check_share(p: float) -> None:
    if not 0 < p <= 1:
        raise ValueError(f"p={p}: it must lie in (0, 1]")
