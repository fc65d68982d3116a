"""One row of a family's table: which of their tensors is which of our parameters, and how its axes are arranged.

A pattern is written as for `einops`, theirs first: `"(H K) D -> D H K"`. It is read from left to right when a model is
loaded and from right to left when it is saved, so one table serves both directions. The sizes of its letters are those
of our parameters.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import einops
import numpy as np

NUMBER = "{}"
TILE = 64  # rows that are copied at a time

Shape = tuple[int, ...]
Index = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """Their tensor and ours.

    Attributes:
      theirs: its name; `{}` stands for the number of the layer, which is the first axis of ours, and a second one for
        the number of the expert, which is the next.
      ours: the path of a parameter, or of several that lie in one tensor of theirs; the pattern's right side then
        begins with an axis that counts them.
      pattern: of one layer, and of one expert where they are numbered, theirs -> ours.
      alias: another name of the tensor: read where theirs is missing, and written beside it.
    """

    theirs: str
    ours: str | tuple[str, ...]
    pattern: str
    alias: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Our parameters, one or several."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def names(self, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Index]]:
        """Their names, each with its index on the first axes of ours: layer and expert, as far as they are numbered."""
        for index in np.ndindex(shapes[self.paths[0]][: self._numbered]):
            yield self.theirs.format(*index), index

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """The shape that one tensor of theirs must have, from the shapes of ours."""
        sizes = self._sizes(shapes[self.paths[0]][self._numbered :])
        axes = [math.prod(sizes.get(letter, 1) for letter in group.split()) for group in _groups(self._left)]
        return tuple(axes)

    def views(self, ours: Mapping[str, np.ndarray], index: Index) -> list[np.ndarray]:
        """Our arrays at one index of `names`; writing to them writes to the parameters."""
        return [ours[path][index] for path in self.paths]

    def read(self, theirs: np.ndarray, shape: Shape) -> list[np.ndarray]:
        """Their whole tensor as ours, each of `shape`, that at one index."""
        grouped = {letter for group in _groups(self._left) if " " in group for letter in group.split()}
        sizes = {letter: size for letter, size in self._sizes(shape).items() if letter in grouped}
        out = einops.rearrange(theirs, self.pattern, **sizes)
        return [out] if isinstance(self.ours, str) else list(out)

    def write(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Our arrays at one index as their tensor."""
        out = einops.rearrange(ours[0] if isinstance(self.ours, str) else np.stack(ours), self._reversed)
        if out.flags.c_contiguous:
            return out
        theirs = np.empty(out.shape, out.dtype)
        copy(theirs, out)
        return theirs

    def target(self, ours: np.ndarray) -> np.ndarray | None:
        """A view of ours whose axes are theirs, where there is one: then their tensor can be read piece by piece."""
        if isinstance(self.ours, tuple):
            return None
        view = einops.rearrange(ours, self._reversed)
        return view if np.may_share_memory(view, ours) else None

    @property
    def _numbered(self) -> int:
        """How many of our first axes are numbers in their name."""
        return self.theirs.count(NUMBER)

    @property
    def _left(self) -> str:
        return self.pattern.split(" -> ")[0]

    @property
    def _reversed(self) -> str:
        left, right = self.pattern.split(" -> ")
        return f"{right} -> {left}"

    def _sizes(self, shape: Shape) -> dict[str, int]:
        """The size of every letter, from the shape of one of ours at one index."""
        full = (len(self.ours), *shape) if isinstance(self.ours, tuple) else shape
        return dict(zip(self.pattern.split(" -> ")[1].split(), full, strict=True))


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copies `[N, ...]`, a few rows at a time: if one side is transposed, its cache lines then serve several rows."""
    for start in range(0, len(source), TILE):
        target[start : start + TILE] = source[start : start + TILE]


def linear(theirs: str, ours: str, pattern: str, bias: bool) -> list[Row]:
    """A weight and, where there is one, a bias; the pattern of the bias is that of the weight without its inputs.

    Args:
      pattern: of the weight, such as `"(H K) D -> D H K"`; the first group on its left are the outputs.
    """
    rows = [Row(f"{theirs}.weight", f"{ours}/kernel", pattern)]
    if bias:
        outputs = _groups(pattern.split(" -> ")[0])[0]
        left = f"({outputs})" if " " in outputs else outputs
        rows.append(Row(f"{theirs}.bias", f"{ours}/bias", f"{left} -> {outputs}"))
    return rows


def norm(theirs: str, ours: str, bias: bool) -> list[Row]:
    """The scale of a norm and, where there is one, its bias."""
    rows = [Row(f"{theirs}.weight", f"{ours}/scale", "D -> D")]
    return [*rows, Row(f"{theirs}.bias", f"{ours}/bias", "D -> D")] if bias else rows


def _groups(side: str) -> list[str]:
    """The axes of one side of a pattern, each as the letters that share it."""
    return [inner or letter for inner, letter in re.findall(r"\(([^)]*)\)|(\S+)", side)]
