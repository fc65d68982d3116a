"""Where every parameter is: by formula from the config, and, independently, from the shapes of the model itself.

Nothing here allocates a parameter, so a model of any size can be counted anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.models.config import ModelConfig, Norm, Stack
from transformer.models.feed_forward import Mlp
from transformer.models.transformer import Transformer

Sizes = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Row:
    """One part of a model.

    Attributes:
      part: the path of a parameter, such as `decoder/blocks/attention/query/kernel`.
      formula: its axes in the legend's letters and in numbers, such as `L·D·F = 12 x 768 x 3,072`.
      per_head: parameters of one query head, or of one key/value head; None where heads have none of their own.
      per_block: parameters in one layer; None outside the layers.
      count: parameters in all.
      active: those that one token uses: all but those of the experts that it is not sent to.
    """

    part: str
    formula: str
    per_head: int | None
    per_block: int | None
    count: int
    active: int


class Flops(NamedTuple):
    """Floating-point operations for one token; the backward pass costs twice the forward one."""

    forward: float
    training: float


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The parameters of a model.

    Attributes:
      config: the model's.
      rows: one for each parameter, or, in a `tally`, for each matrix.
    """

    config: ModelConfig
    rows: tuple[Row, ...]

    @property
    def total(self) -> int:
        """The number of parameters in all rows."""
        return sum(row.count for row in self.rows)

    @property
    def active(self) -> int:
        """The number of parameters that one token uses; the total where there are no experts."""
        return sum(row.active for row in self.rows)

    @property
    def tally(self) -> Ledger:
        """The count that explainers give: embedding, matrices of the layers, and an unembedding even where it is tied.

        Positions, token types, biases, norms and the pooler are left out.
        """
        unembedding = _row("readout/kernel", "D V", {"D": self.config.width, "V": self.config.vocab})
        rows = [row for row in self.rows if row.part == "embedding/table" or row.part.endswith("/kernel")]
        rows = [row for row in rows if row.part not in ("pooler/kernel", unembedding.part)]
        return Ledger(self.config, (*rows, unembedding))

    def subtotal(self, path: str) -> Row:
        """Every row with these steps in its path, as one row: `attention` in a tally is query, key, value and output.

        Its `per_head` and `per_block` are sums too, and None where one of the rows has none.

        Raises:
          ValueError: if no row has them.
        """
        rows = [row for row in self.rows if f"/{path}/" in f"/{row.part}/"]
        if not rows:
            steps = dict.fromkeys(step for row in self.rows for step in row.part.split("/"))
            raise ValueError(f"no part of the ledger has {path!r} in its path; the steps are {', '.join(steps)}")
        columns = ([row.per_head for row in rows], [row.per_block for row in rows])
        per_head, per_block = (None if None in column else sum(column) for column in columns)
        count, active = sum(row.count for row in rows), sum(row.active for row in rows)
        return Row(path, " + ".join(f"{row.count:,}" for row in rows), per_head, per_block, count, active)

    def flops_per_token(self, length: int, *, causal: bool = False) -> Flops:
        """Matrix products for one token of a sequence of `length` tokens, two operations for each multiply-add.

        Every matrix costs 2 for each of its entries, and a head 4 K for each key that a query meets (scores and mix):
        `6 N + 12 L H K T` for training, N counting the matrices without the embedding, and of experts those that a
        token is sent to. This is the numerator of model FLOPs utilisation in Chowdhery et al. 2022 (arXiv:2204.02311),
        appendix B. Lookups, norms, softmax and activations are not counted, nor is what rematerialisation repeats. An
        encoder-decoder is counted for a target token and a source token together, both sequences being `length` long.

        Args:
          length: T, in tokens.
          causal: count only the keys that the causal mask and windows let a query meet, on average over the sequence;
            otherwise every query meets all T keys, as in the paper.

        Raises:
          ValueError: if `length` is not positive.
        """
        if length < 1:
            raise ValueError(f"length={length} tokens cannot be: pass 1 or more")
        tally = self.tally
        products = 2 * (tally.active - tally.subtotal("embedding").active)
        forward = float(
            products + sum(_attention_flops(self.config, role, length, causal) for role in _roles(self.config))
        )
        return Flops(forward, 3 * forward)


def ledger(config: ModelConfig) -> Ledger:
    """The parameters of a model, counted by formula.

    book = ledger(models.get("gpt3-175b"))
    book.total
    book.tally.subtotal("attention").per_head
    """
    sizes = {"D": config.width, "V": config.vocab, "length": config.length, "types": config.token_types}
    rows = [_row("embedding/table", "V D", sizes)]
    if config.token_types:
        rows.append(_row("embedding/types", "types D", sizes))
    for role, stack in _roles(config).items():
        rows += _stack(config, role, stack, sizes)
    return Ledger(config, tuple(rows + _readout(config, sizes)))


@functools.lru_cache(maxsize=8)
def shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter of a model by path, from what its initialisation would give."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    source = tokens if config.encoder is not None and config.decoder is not None else None
    variables = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens, source=source)
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables["params"])
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
    return types.MappingProxyType(named)


def _roles(config: ModelConfig) -> dict[str, Stack]:
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    return {role: stack for role, stack in stacks.items() if stack is not None}


def _row(part: str, axes: str, sizes: Sizes) -> Row:
    """A row from its axes: without L they are one block's, without L and the heads one head's."""
    letters = axes.split()
    formula = f"{'·'.join(letters)} = {' x '.join(f'{sizes[letter]:,}' for letter in letters)}"

    def without(*left_out: str) -> int:
        return math.prod(sizes[letter] for letter in letters if letter not in left_out)

    per_head = without("L", "H", "G") if {"H", "G"} & set(letters) else None
    return Row(part, formula, per_head, without("L") if "L" in letters else None, without(), without())


def _norm(path: str, norm: Norm, axes: str, sizes: Sizes) -> list[Row]:
    return [_row(f"{path}/{name}", axes, sizes) for name in (("scale", "bias") if norm.bias else ("scale",))]


def _dense(path: str, inputs: str, outputs: str, bias: bool, sizes: Sizes, layers: str = "L ") -> list[Row]:
    kernel = _row(f"{path}/kernel", f"{layers}{inputs} {outputs}", sizes)
    return [kernel, _row(f"{path}/bias", layers + outputs, sizes)] if bias else [kernel]


def _stack(config: ModelConfig, role: str, stack: Stack, sizes: Sizes) -> list[Row]:
    attention, position = stack.attention, stack.position
    sizes = sizes | {"L": stack.depth, "H": attention.heads, "G": config.kv_heads(stack)}
    sizes |= {"K": config.head_width(stack), "F": config.mlp_width(stack), "buckets": position.buckets}
    blocks = f"{role}/blocks"
    rows = []
    if position.kind == "learned":
        places = {"length": sizes["length"] + position.offset}
        rows.append(_row(f"{role}/positions/table", "length D", sizes | places))
    if position.kind == "relative":
        rows.append(_row(f"{role}/relative/table", "buckets H", sizes))
    if stack.embedding_norm:
        rows += _norm(f"{role}/embedding_norm", stack.norm, "D", sizes)
    rows += _attention(f"{blocks}/attention", stack, sizes) + _half_norms(f"{blocks}/attention", stack, sizes)
    if role == "decoder" and config.encoder is not None:
        rows += _attention(f"{blocks}/cross_attention", stack, sizes)
        rows += _half_norms(f"{blocks}/cross", stack, sizes)
    if stack.mlp is not None:
        rows += _feed_forward(f"{blocks}/mlp", stack.mlp, sizes) + _half_norms(f"{blocks}/mlp", stack, sizes)
    return rows + (_norm(f"{role}/final_norm", stack.norm, "D", sizes) if stack.norm_placement != "post" else [])


def _feed_forward(path: str, mlp: Mlp, sizes: Sizes) -> list[Row]:
    names = ("up", "gate") if mlp.gated else ("up",)
    if mlp.experts is None:
        rows = [row for name in names for row in _dense(f"{path}/{name}", "D", "F", mlp.bias, sizes)]
        return rows + _dense(f"{path}/down", "F", "D", mlp.bias, sizes)
    experts, sizes = mlp.experts, sizes | {"N": mlp.experts.count}
    rows = [row for name in names for row in _dense(f"{path}/{name}", "D", "F", mlp.bias, sizes, "L N ")]
    rows += _dense(f"{path}/down", "F", "D", mlp.bias, sizes, "L N ")
    rows = [dataclasses.replace(row, active=row.count // experts.count * experts.active) for row in rows]
    return _dense(f"{path}/router", "D", "N", False, sizes) + rows


def _half_norms(path: str, stack: Stack, sizes: Sizes) -> list[Row]:
    names = ("norm", "post_norm") if stack.norm_placement == "both" else ("norm",)
    return [row for name in names for row in _norm(f"{path}_{name}", stack.norm, "L D", sizes)]


def _attention(path: str, stack: Stack, sizes: Sizes) -> list[Row]:
    attention, rows = stack.attention, []
    for name, heads in (("query", "H K"), ("key", "G K"), ("value", "G K")):
        rows += _dense(f"{path}/{name}", "D", heads, attention.bias, sizes)
    rows += _dense(f"{path}/output", "H K", "D", attention.output_bias, sizes)
    if attention.query_key_norm:
        rows += [_row(f"{path}/{name}/scale", "L K", sizes) for name in ("query_norm", "key_norm")]
    return rows


def _readout(config: ModelConfig, sizes: Sizes) -> list[Row]:
    readout, rows = config.readout, []
    if readout.transform:
        rows += _dense("readout/transform", "D", "D", True, sizes, layers="")
        rows += _norm("readout/norm", (config.decoder or config.encoder).norm, "D", sizes)
    if not readout.tied:
        rows.append(_row("readout/kernel", "D V", sizes))
    if readout.bias:
        rows.append(_row("readout/bias", "V", sizes))
    return rows + (_dense("pooler", "D", "D", True, sizes, layers="") if config.pooler else [])


def _attention_flops(config: ModelConfig, role: str, length: int, causal: bool) -> float:
    """Scores and mix of one stack, for one query token, in every layer."""
    stack = _roles(config)[role]
    per_key = 4 * stack.attention.heads * config.head_width(stack)
    crosses = role == "decoder" and config.encoder is not None
    windows = (stack.attention.windows or (0,)) if causal and role == "decoder" else None
    met = length if windows is None else sum(_keys_met(length, window) for window in windows) / len(windows)
    return stack.depth * per_key * (met + (length if crosses else 0))


def _keys_met(length: int, window: int) -> float:
    """Keys at or before a query and inside its window (0: all), on average over a sequence."""
    reach = min(window, length) if window else length
    return (reach * (reach + 1) / 2 + (length - reach) * reach) / length
