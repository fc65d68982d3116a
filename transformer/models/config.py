"""The configuration of a model: a frozen tree of dataclasses, checked when it is built.

`ModelConfig.encoder` and `ModelConfig.decoder` say what the model is: an encoder, a decoder, or both joined by
cross-attention. Every default stands once, here or in `feed_forward`. A choice among implementations is a name in one
of the tuples.
"""

from __future__ import annotations

import dataclasses

from transformer.models.checks import check_probability, check_types, one_of, require
from transformer.models.feed_forward import Mlp
from transformer.ops.attention import IMPLEMENTATIONS

NORMS = ("layer", "rms")
PLACEMENTS = ("pre", "post", "both")
POSITIONS = ("none", "learned", "sinusoidal", "rotary", "relative", "alibi")
SCALINGS = ("none", "linear", "ntk", "dynamic", "llama3", "yarn")
DTYPES = ("float32", "bfloat16", "float16")
REMATS = ("none", "full", "dots", "dots_without_batch")
INITS = ("normal", "fan_in", "xavier")


@dataclasses.dataclass(frozen=True)
class Norm:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019)."""

    kind: str = "rms"
    epsilon: float = 1e-6
    bias: bool = False  # a learned offset; LayerNorm only
    zero_centred: bool = False  # multiply by 1 + scale, as Gemma does

    def __post_init__(self):
        check_types(self, "norm.")
        one_of("norm.kind", self.kind, NORMS)
        require(self.epsilon > 0, "norm.epsilon", self.epsilon, "it must be positive")
        require(not (self.bias and self.kind == "rms"), "norm.bias", self.bias, "only norm.kind='layer' has a bias")


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How rotary frequencies are stretched beyond the length that a model was trained at (see `ops.positions`)."""

    kind: str = "none"
    factor: float = 1.0  # the stretch; new length / original length
    original_length: int = 8192  # positions seen in pre-training: dynamic, llama3, yarn
    low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast
    magnitude: float | None = None  # yarn: multiplies turned queries and keys; None: 0.1 ln(factor) + 1

    def __post_init__(self):
        check_types(self, "scaling.")
        one_of("scaling.kind", self.kind, SCALINGS)
        require(self.factor >= 1.0, "scaling.factor", self.factor, "it must be at least 1")
        require(self.original_length > 0, "scaling.original_length", self.original_length, "it must be positive")
        require(0 < self.low < self.high, "scaling.low", self.low, f"it must lie between 0 and high={self.high}")
        if self.magnitude is not None:
            require(self.kind == "yarn", "scaling.magnitude", self.magnitude, "only scaling.kind='yarn' reads it")
            require(self.magnitude > 0, "scaling.magnitude", self.magnitude, "it must be positive")


@dataclasses.dataclass(frozen=True)
class Position:
    """How a stack knows order: added to embeddings (learned, sinusoidal), turned into queries and keys (rotary) or
    added to scores (relative, alibi)."""

    kind: str = "rotary"
    base: float = 10_000.0  # rotary and sinusoidal wavelengths run from 2 pi to base * 2 pi
    fraction: float = 1.0  # rotary: the share of each head's width that is turned
    scaling: Scaling = Scaling()
    buckets: int = 32  # relative: number of distance buckets
    distance: int = 128  # relative: every distance from here on shares the last bucket
    offset: int = 0  # learned: rows of the table before that of the first position; RoBERTa's begin with its padding
    halves: bool = False  # sinusoidal: all sines and then all cosines, as in tensor2tensor, rather than alternating

    def __post_init__(self):
        check_types(self, "position.")
        one_of("position.kind", self.kind, POSITIONS)
        require(self.base > 1, "position.base", self.base, "it must exceed 1")
        require(0 < self.fraction <= 1, "position.fraction", self.fraction, "it must lie in (0, 1]")
        require(
            self.buckets >= 4 and self.buckets % 2 == 0, "position.buckets", self.buckets, "use an even number >= 4"
        )
        require(self.distance > self.buckets // 2, "position.distance", self.distance, "it must exceed buckets / 2")
        require(self.offset >= 0, "position.offset", self.offset, "it counts rows: 0 or more")
        looks_up = self.kind == "learned" or not self.offset
        require(looks_up, "position.offset", self.offset, "only position.kind='learned' has a table")
        splits = self.kind == "sinusoidal" or not self.halves
        require(splits, "position.halves", self.halves, "only position.kind='sinusoidal' has sines and cosines")


@dataclasses.dataclass(frozen=True)
class Attention:
    """Multi-head attention (Vaswani et al. 2017); fewer key/value heads make it grouped or multi-query."""

    heads: int = 4
    kv_heads: int | None = None  # None: as many as heads
    head_width: int | None = None  # None: model width / heads
    bias: bool = False  # on query, key and value
    output_bias: bool = False
    scale: float | None = None  # multiplies scores; None: 1 / sqrt(head width)
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)
    query_key_norm: bool = False  # RMSNorm over each head's query and key
    windows: tuple[int, ...] = ()  # by layer, repeating: keys seen back from a query, itself included; 0: all
    dropout: float = 0.0  # on the pattern

    def __post_init__(self):
        check_types(self, "attention.")
        require(self.heads > 0, "attention.heads", self.heads, "it must be positive")
        if self.kv_heads is not None:
            divides = self.kv_heads > 0 and self.heads % self.kv_heads == 0
            require(divides, "attention.kv_heads", self.kv_heads, f"it must divide heads={self.heads}")
        if self.head_width is not None:
            require(self.head_width > 0, "attention.head_width", self.head_width, "it must be positive")
        if self.softcap is not None:
            require(self.softcap > 0, "attention.softcap", self.softcap, "it must be positive")
        require(all(w >= 0 for w in self.windows), "attention.windows", self.windows, "windows are 0 (all) or positive")
        check_probability("attention.dropout", self.dropout)


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stack of equal blocks. In `ModelConfig.decoder` it is causal; with an encoder beside it, it cross-attends.

    Where a half-block's output is not normalised with the residual (`pre` and `both`), a norm follows the last block.
    """

    depth: int = 4
    attention: Attention = Attention()
    mlp: Mlp | None = Mlp()  # None: attention-only blocks
    norm: Norm = Norm()
    norm_placement: str = "pre"  # pre: x + f(norm(x)); post: norm(x + f(x)); both: x + norm(f(norm(x)))
    position: Position = Position()
    embedding_norm: bool = False  # a norm on the embeddings before the first block
    parallel: bool = False  # x + attention(norm(x)) + mlp(another norm(x)): both halves read the block's input
    dropout: float = 0.0  # on embeddings and on what each half-block adds to the residual

    def __post_init__(self):
        check_types(self)
        require(self.depth > 0, "depth", self.depth, "a stack needs at least one layer")
        one_of("norm_placement", self.norm_placement, PLACEMENTS)
        check_probability("dropout", self.dropout)
        if self.parallel:
            require(self.mlp is not None, "parallel", True, "it needs an mlp beside attention")
            require(self.norm_placement == "pre", "parallel", True, "it needs norm_placement='pre'")
        period = max(1, len(self.attention.windows))
        require(self.depth % period == 0, "depth", self.depth, f"it must be a multiple of the {period} windows")


@dataclasses.dataclass(frozen=True)
class Readout:
    """From the last residual to logits over the vocabulary."""

    tied: bool = True  # read with the embedding table; otherwise with a matrix of its own
    bias: bool = False
    transform: bool = False  # BERT's masked-language-model head: dense, activation, norm, before reading
    scale: bool = False  # multiply the residual by 1 / sqrt(model width) first, as T5 does when tied
    softcap: float | None = None  # logits become softcap * tanh(logits / softcap)

    def __post_init__(self):
        check_types(self, "readout.")
        if self.softcap is not None:
            require(self.softcap > 0, "readout.softcap", self.softcap, "it must be positive")


@dataclasses.dataclass(frozen=True)
class Init:
    """Standard deviations of the parameters at step 0. Biases start at zero, norm scales at one."""

    kind: str = "normal"  # normal: scale; fan_in: scale / sqrt(inputs); xavier: scale * sqrt(2 / (inputs + outputs))
    scale: float = 0.02
    embedding: float = 0.02  # token and position tables
    output: float | None = None  # multiplies matrices that write to the residual; None: 1 / sqrt(2 x depth) (GPT-2)

    def __post_init__(self):
        check_types(self, "init.")
        one_of("init.kind", self.kind, INITS)
        for name in ("scale", "embedding"):
            require(getattr(self, name) > 0, f"init.{name}", getattr(self, name), "it must be positive")
        if self.output is not None:
            require(self.output >= 0, "init.output", self.output, "it must not be negative")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An encoder (`decoder=None`), a decoder (`encoder=None`), or both."""

    vocab: int
    width: int
    encoder: Stack | None = None
    decoder: Stack | None = None
    length: int = 1024  # the longest sequence; sizes learned position tables and key/value caches
    embedding_scale: bool = False  # multiply token embeddings by sqrt(width)
    token_types: int = 0  # BERT's segment embeddings; 0: none
    readout: Readout = Readout()
    pooler: bool = False  # BERT's tanh layer on the first position
    init: Init = Init()
    dtype: str = "float32"  # of activations and matrix products; norms, softmax and losses stay in float32
    param_dtype: str = "float32"
    unroll: int = 1  # layers per step of the scan over layers; trades compile time for speed
    attention_implementation: str = "auto"  # of `ops.attention.IMPLEMENTATIONS`, for whole sequences
    remat: str = "none"  # what the backward pass recomputes: nothing, everything, or all but matrix products

    def __post_init__(self):
        check_types(self)
        for name in ("vocab", "width", "length", "unroll"):
            require(getattr(self, name) > 0, name, getattr(self, name), "it must be positive")
        require(self.token_types >= 0, "token_types", self.token_types, "it must not be negative")
        one_of("dtype", self.dtype, DTYPES)
        one_of("param_dtype", self.param_dtype, DTYPES)
        one_of("remat", self.remat, REMATS)
        one_of("attention_implementation", self.attention_implementation, IMPLEMENTATIONS)
        stacks = {"encoder": self.encoder, "decoder": self.decoder}
        require(any(stacks.values()), "encoder, decoder", None, "give at least one of them a Stack")
        for name, stack in stacks.items():
            if stack is not None:
                self._check_stack(name, stack)
        if self.encoder is not None:
            windows = self.encoder.attention.windows
            require(
                not any(windows), "encoder.attention.windows", windows, "a window needs a causal mask: use a decoder"
            )
            crosses_in_parallel = self.decoder is not None and self.decoder.parallel
            fix = "a block that cross-attends takes its parts in turn: leave it False beside an encoder"
            require(not crosses_in_parallel, "decoder.parallel", True, fix)
        pools = self.encoder is not None and self.decoder is None
        require(pools or not self.pooler, "pooler", self.pooler, "only an encoder without a decoder has a pooler")

    def _check_stack(self, name: str, stack: Stack) -> None:
        attention, position = stack.attention, stack.position
        if attention.head_width is None:
            fix = f"width={self.width} must be divisible by it, or set {name}.attention.head_width"
            require(self.width % attention.heads == 0, f"{name}.attention.heads", attention.heads, fix)
        if position.kind == "rotary":
            turned, width = self.head_width(stack) * position.fraction, self.rotary_width(stack)
            fits = abs(turned - width) < 1e-6 and width > 0 and width % 2 == 0
            fix = f"rotary turns pairs: fraction x head width must be an even whole number, not {turned:g}"
            require(fits, f"{name}.position.fraction", position.fraction, fix)
            rebases = position.scaling.kind in ("ntk", "dynamic")
            fix = f"it needs at least 4 features of each head to turn, not {width}"
            require(width >= 4 or not rebases, f"{name}.position.scaling.kind", position.scaling.kind, fix)
        if position.kind == "sinusoidal":
            require(self.width % 2 == 0, "width", self.width, f"{name}.position.kind='sinusoidal' needs an even width")
        require(self.unroll <= stack.depth, "unroll", self.unroll, f"it must not exceed {name}.depth={stack.depth}")

    def head_width(self, stack: Stack) -> int:
        """K: the width of one head."""
        return stack.attention.head_width or self.width // stack.attention.heads

    def kv_heads(self, stack: Stack) -> int:
        """G: the number of key/value heads."""
        return stack.attention.kv_heads or stack.attention.heads

    def rotary_width(self, stack: Stack) -> int:
        """How many features of each head turn, where positions are rotary; a fraction's rounding does not show."""
        return round(self.head_width(stack) * stack.position.fraction)

    def mlp_width(self, stack: Stack) -> int:
        """F: the inner width of the feed-forward layers; 0 without any."""
        if stack.mlp is None:
            return 0
        if stack.mlp.width is not None:
            return stack.mlp.width
        return -(-8 * self.width // 96) * 32 if stack.mlp.gated else 4 * self.width

    def output_multiplier(self, stack: Stack) -> float:
        """Of the initial standard deviation of matrices that write to the residual (GPT-2, section 2.3)."""
        return (2 * stack.depth) ** -0.5 if self.init.output is None else self.init.output
