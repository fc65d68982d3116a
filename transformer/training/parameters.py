"""What a parameter is, read from its path and its shape.

Paths are names joined by "/", as in `decoder/blocks/attention/query/kernel`. Everything below `blocks` is stacked over
layers: its first axis counts layers and is no axis of any one layer's parameter. Where a layer has experts, the next
axis of their parameters counts them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

HEADS = ("query", "key", "value")  # kernels [D, H, K]; the output kernel is [H, K, D]
FEED_FORWARD = ("up", "gate", "down")  # kernels [D, F] and [F, D]; of experts [N, D, F] and [N, F, D]
NO_MATRIX = ("bias", "scale")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The path of a parameter and its shape, with the layer axis when it has one."""

    path: str
    shape: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        return self.path.split("/")

    @property
    def stacked(self) -> bool:
        """Whether the first axis counts layers."""
        return "blocks" in self.names

    @property
    def alike(self) -> int:
        """How many axes in front count parameters of one kind, each with a start and updates of its own: layers, and
        experts in a layer."""
        of_experts = self.stacked and self.names[-2] in FEED_FORWARD
        own = {"kernel": 2, "bias": 1}.get(self.names[-1])
        return int(self.stacked) + int(of_experts and len(self.shape) == 2 + own)

    @property
    def own_shape(self) -> tuple[int, ...]:
        """The shape within one layer, and of one expert."""
        return self.shape[self.alike :]

    @property
    def matrix(self) -> bool:
        """Whether it multiplies vectors: kernels and embedding tables; not biases, norm scales or the table of
        relative positions, whose entries are biases added to scores."""
        names = self.names
        return len(self.own_shape) >= 2 and names[-1] not in NO_MATRIX and "relative" not in names

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """The own shape with several heads' matrices side by side: inputs by outputs. A query kernel [D, H, K] is
        [D, H K], an output kernel [H, K, D] is [H K, D]; what is no kernel stays as it is."""
        shape = self.own_shape
        if self.names[-1] != "kernel" or len(shape) < 3:
            return shape
        if self.names[-2] in HEADS:
            return shape[0], math.prod(shape[1:])
        return math.prod(shape[:-1]), shape[-1]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`function(parameter, leaf, *leaves of rest)` over a tree of arrays or shapes."""

    def named(path: Any, leaf: Any, *others: Any) -> Any:
        return function(Parameter(name(path), tuple(leaf.shape)), leaf, *others)

    return jax.tree_util.tree_map_with_path(named, tree, *rest)


def name(path: Any) -> str:
    """The names on a JAX key path, joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
