"""A grid of small models that between them use every feature, and their forward pass in float64 NumPy.

Tests ask for `case` (each model of the grid in turn), or for `decoding`, `encoding` or `crossing`: the models with a
decoder, those with an encoder alone, those with both.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, Init, Mlp, ModelConfig, Norm, Position, Readout, Scaling, Stack
from transformer.models.feed_forward import Experts
from transformer.models.transformer import Transformer

VOCAB, LENGTH, SOURCE = 13, 6, 5
_LAYER = Norm("layer", 1e-5, bias=True)
_PLAIN = Mlp(20, "relu", gated=False, bias=True)
_BIASED = Attention(4, bias=True, output_bias=True)


def _config(width: int, **fields) -> ModelConfig:
    return ModelConfig(VOCAB, width, **{"length": 16, "init": Init(scale=0.3, embedding=1.0, output=1.0), **fields})


def _gpt2() -> ModelConfig:
    stack = Stack(2, _BIASED, Mlp(None, "gelu_tanh", gated=False, bias=True), _LAYER, position=Position("learned"))
    return _config(8, decoder=stack)


def _llama() -> ModelConfig:
    return _config(8, decoder=Stack(2, Attention(4, 2), Mlp(24), Norm(epsilon=1e-5)), readout=Readout(tied=False))


def _gemma() -> ModelConfig:
    attention = Attention(3, 1, 4, softcap=2.0, query_key_norm=True, windows=(0, 3))
    stack = Stack(4, attention, Mlp(16, "gelu_tanh"), Norm(zero_centred=True))
    return _config(8, decoder=stack, embedding_scale=True, readout=Readout(softcap=4.0), unroll=4)


def _alibi() -> ModelConfig:
    stack = Stack(2, Attention(4, 2, windows=(3,)), mlp=None, position=Position("alibi"), embedding_norm=True)
    return _config(8, decoder=stack, readout=Readout(scale=True))


def _bare() -> ModelConfig:
    stack = Stack(2, Attention(1), Mlp(12, "relu"), norm_placement="post", position=Position("none"))
    return _config(6, decoder=stack, readout=Readout(tied=False, bias=True), token_types=2)


def _bert() -> ModelConfig:
    mlp = Mlp(16, "gelu", gated=False, bias=True)
    stack = Stack(2, _BIASED, mlp, _LAYER, "post", Position("learned"), embedding_norm=True)
    return _config(8, encoder=stack, token_types=3, pooler=True, readout=Readout(bias=True, transform=True))


def _stretched() -> ModelConfig:
    position = Position(base=50.0, fraction=0.5, scaling=Scaling("linear", 3.0))
    return _config(8, encoder=Stack(3, Attention(2, 1), norm=Norm("layer", bias=False), position=position))


def _t5() -> ModelConfig:
    attention = Attention(2, head_width=6, scale=1.0)
    stack = Stack(2, attention, Mlp(20, "relu", gated=False), position=Position("relative", buckets=6, distance=7))
    return _config(8, encoder=stack, decoder=stack, readout=Readout(scale=True))


def _original() -> ModelConfig:
    stack = Stack(2, Attention(2), _PLAIN, _LAYER, "post", Position("sinusoidal", base=100.0))
    return _config(8, encoder=stack, decoder=stack, embedding_scale=True)


def _mixed() -> ModelConfig:
    encoder = Stack(1, Attention(4, 1, bias=True), mlp=None, norm=_LAYER, position=Position("alibi"))
    attention = Attention(4, 2, 2, bias=True, output_bias=True, query_key_norm=True, softcap=3.0, windows=(2, 0))
    return _config(12, encoder=encoder, decoder=Stack(2, attention, Mlp(8, bias=True)), readout=Readout(tied=False))


def _gemma2() -> ModelConfig:
    attention = Attention(2, 1, 6, scale=0.3, softcap=3.0, windows=(3, 0))
    stack = Stack(2, attention, Mlp(16, "gelu_tanh"), Norm(zero_centred=True), "both")
    return _config(8, decoder=stack, embedding_scale=True, readout=Readout(softcap=5.0))


def _neox() -> ModelConfig:
    scaling = Scaling("yarn", 4.0, original_length=16, low=0.2, high=2.0, magnitude=1.3)
    position, mlp = Position(base=50.0, fraction=0.5, scaling=scaling), Mlp(16, "gelu", gated=False, bias=True)
    attention = Attention(2, head_width=16, bias=True, output_bias=True)
    stack = Stack(3, attention, mlp, _LAYER, position=position, parallel=True)
    return _config(8, decoder=stack, readout=Readout(tied=False))


def _sandwich() -> ModelConfig:
    position = Position("sinusoidal", base=30.0, halves=True)
    encoder = Stack(2, _BIASED, _PLAIN, _LAYER, position=position, parallel=True)
    decoder = Stack(2, Attention(2), Mlp(12), Norm(epsilon=1e-5), "both", position)
    return _config(8, encoder=encoder, decoder=decoder, readout=Readout(bias=True))


def _mixtral() -> ModelConfig:
    stack = Stack(2, Attention(2, 1), Mlp(12, experts=Experts(4, 2)))
    return _config(8, decoder=stack, readout=Readout(tied=False))


def _switch() -> ModelConfig:
    encoder = Stack(1, Attention(2), Mlp(10, "relu", gated=False, bias=True, experts=Experts(3, 1, normalize=False)))
    return _config(8, encoder=encoder, decoder=Stack(1, Attention(2), Mlp(8, experts=Experts(2, 2, normalize=False))))


_BUILDERS = (
    _gpt2, _llama, _gemma, _alibi, _bare, _bert, _stretched, _t5, _original, _mixed, _gemma2, _neox, _sandwich,
    _mixtral, _switch,
)  # fmt: skip
GRID = {build.__name__[1:]: build() for build in _BUILDERS}


@dataclasses.dataclass
class Case:
    """A model of the grid with lively parameters (no bias is zero, no scale is one) and one batch."""

    name: str
    config: ModelConfig

    def __post_init__(self):
        self.model = Transformer(self.config)
        self.decodes = self.config.decoder is not None
        self.crosses = self.decodes and self.config.encoder is not None
        draw = np.random.default_rng(0)
        self.tokens = draw.integers(0, VOCAB, (3, LENGTH))
        self.source = draw.integers(0, VOCAB, (3, SOURCE)) if self.crosses else None
        self.params = lively(self.model, self.tokens, source=self.source)
        self.apply = quick(lambda params, tokens, **rest: self.model.apply({"params": params}, tokens, **rest))

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Of the whole batch, `[B, T, V]`, without any option."""
        return np.asarray(self.apply(self.params, self.tokens, **self.with_source()))

    def with_source(self, **arguments) -> dict:
        return {"source": self.source, **arguments} if self.crosses else arguments

    def expected(self, tokens, source=None, token_types=None) -> np.ndarray:
        """Logits `[T, V]` of one sequence `[T]` with its source `[S]`, by the reference."""
        return _forward(self.config, self.exact, tokens, source, token_types)

    @functools.cached_property
    def exact(self) -> dict:
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self.params)


def lively(model: Transformer, tokens, **arguments) -> dict:
    """Random parameters, biases and scales too, without the time that compiling `init` takes."""
    draw = np.random.default_rng(1)

    def fill(path, leaf):
        start, spread = float(path[-1].key == "scale"), 1.0 if path[0].key == "embedding" else 0.4
        return jnp.asarray(start + draw.normal(0, spread, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, **arguments)["params"]
    return jax.tree_util.tree_map_with_path(fill, shapes)


def quick(function):
    """`jax.jit` that spends less on optimising: these programs run once or twice."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def _forward(config: ModelConfig, params: dict, tokens, source, token_types) -> np.ndarray:
    def embed(ids, types):
        x = params["embedding"]["table"][ids] * (math.sqrt(config.width) if config.embedding_scale else 1)
        types = np.zeros(len(ids), int) if types is None else types
        return x + params["embedding"]["types"][types] if config.token_types else x

    memory = None
    if config.encoder is not None:
        ids, types = (tokens, token_types) if config.decoder is None else (source, None)
        memory = _stack(config, config.encoder, params["encoder"], embed(ids, types), None, False)
    if config.decoder is not None:
        memory = _stack(config, config.decoder, params["decoder"], embed(tokens, token_types), memory, True)
    return _read(config, params, memory)


def _read(config: ModelConfig, params: dict, x) -> np.ndarray:
    readout, stack, own = config.readout, config.decoder or config.encoder, params.get("readout", {})
    if readout.transform:
        x = _ACTIVATIONS[stack.mlp.activation](x @ own["transform"]["kernel"] + own["transform"]["bias"])
        x = _norm(stack.norm, own["norm"], x)
    x = x / math.sqrt(config.width) if readout.scale else x
    logits = x @ (params["embedding"]["table"].T if readout.tied else own["kernel"])
    logits = logits + own["bias"] if readout.bias else logits
    return readout.softcap * np.tanh(logits / readout.softcap) if readout.softcap else logits


def _stack(config: ModelConfig, stack: Stack, params: dict, x, memory, causal: bool) -> np.ndarray:
    steps, placement = np.arange(len(x)), stack.norm_placement
    x = x + _absolute(config, stack, params, steps)
    x = _norm(stack.norm, params["embedding_norm"], x) if stack.embedding_norm else x
    for layer in range(stack.depth):
        block = jax.tree.map(lambda leaf: leaf[layer], params["blocks"])  # noqa: B023
        behind, windows = steps[:, None] - steps, stack.attention.windows or (0,)
        seen = (behind >= 0) & (behind < (windows[layer % len(windows)] or len(x))) | (not causal)

        def half(name, part, x, seen=None, block=block):
            norm, seen = functools.partial(_norm, stack.norm), x if seen is None else seen
            if placement == "post":
                return norm(block[f"{name}_norm"], x + part(x))
            out = part(norm(block[f"{name}_norm"], seen))
            return x + (norm(block[f"{name}_post_norm"], out) if placement == "both" else out)

        own, cross, before = block["attention"], block.get("cross_attention"), x
        bias = _bias(stack, params, behind, causal)
        x = half("attention", lambda h: _attention(config, stack, own, h, h, seen, bias, True), x)  # noqa: B023
        if memory is not None:
            all_seen, none = np.ones((len(x), len(memory)), bool), np.zeros(stack.attention.heads)
            x = half("cross", lambda h: _attention(config, stack, cross, h, memory, all_seen, none, False), x)  # noqa: B023
        if stack.mlp is not None:
            x = half("mlp", lambda h: _mlp(stack.mlp, block["mlp"], h), x, before if stack.parallel else x)  # noqa: B023
    return x if placement == "post" else _norm(stack.norm, params["final_norm"], x)


def _attention(config: ModelConfig, stack: Stack, params: dict, x, memory, seen, bias, is_self: bool) -> np.ndarray:
    attention, out = stack.attention, 0.0
    for head in range(attention.heads):
        group = head * config.kv_heads(stack) // attention.heads

        def part(name, of, index):
            made = of @ params[name]["kernel"][:, index] + (params[name]["bias"][index] if attention.bias else 0)
            if attention.query_key_norm and name != "value":
                norm = Norm("rms", stack.norm.epsilon, zero_centred=stack.norm.zero_centred)
                made = _norm(norm, params[f"{name}_norm"], made)
            turns = is_self and stack.position.kind == "rotary" and name != "value"
            return _turn(stack.position, made) if turns else made

        query, key, value = part("query", x, head), part("key", memory, group), part("value", memory, group)
        scores = query @ key.T * (attention.scale or 1 / math.sqrt(query.shape[1]))
        scores = attention.softcap * np.tanh(scores / attention.softcap) if attention.softcap else scores
        raised = np.exp(scores + bias[head]) * seen
        out = out + raised / raised.sum(axis=1, keepdims=True) @ value @ params["output"]["kernel"][head]
    return out + (params["output"]["bias"] if attention.output_bias else 0)


def _mlp(mlp: Mlp, params: dict, x) -> np.ndarray:
    if mlp.experts is not None:
        return np.stack([_mixture(mlp, params, token) for token in x])
    apply = lambda name, x: x @ params[name]["kernel"] + (params[name]["bias"] if mlp.bias else 0)  # noqa: E731
    activation = _ACTIVATIONS[mlp.activation]
    return apply("down", activation(apply("gate", x)) * apply("up", x) if mlp.gated else activation(apply("up", x)))


def _mixture(mlp: Mlp, params: dict, token) -> np.ndarray:
    """One token through its experts."""
    logits = token @ params["router"]["kernel"]
    experts = np.argsort(-logits)[: mlp.experts.active]
    weights = np.exp(logits[experts]) / np.exp(logits[experts] if mlp.experts.normalize else logits).sum()
    alone = dataclasses.replace(mlp, experts=None)
    parts = [{name: jax.tree.map(lambda leaf: leaf[expert], params[name]) for name in params if name != "router"}  # noqa: B023
             for expert in experts]  # fmt: skip
    return sum(weight * _mlp(alone, part, token) for weight, part in zip(weights, parts, strict=True))


_ACTIVATIONS = {
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def _norm(norm: Norm, params: dict, x) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True) if norm.kind == "layer" else x
    out = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + norm.epsilon) * (params["scale"] + norm.zero_centred)
    return out + params["bias"] if norm.bias else out


def _absolute(config: ModelConfig, stack: Stack, params: dict, steps) -> np.ndarray:
    position, out = stack.position, np.zeros((len(steps), config.width))
    if position.kind == "learned":
        out = params["positions"]["table"][: len(steps)]
    elif position.kind == "sinusoidal":
        for feature in range(config.width):
            pair, is_cosine = divmod(feature, 2)
            if position.halves:
                is_cosine, pair = divmod(feature, config.width // 2)
            out[:, feature] = (np.cos if is_cosine else np.sin)(steps / position.base ** (2 * pair / config.width))
    return out


def _turn(position: Position, x) -> np.ndarray:
    """Features i and i + R / 2 as a complex number, times magnitude e^(i angle)."""
    half, scaling = int(x.shape[1] * position.fraction) // 2, position.scaling
    frequencies = position.base ** (-np.arange(half) / half) * _shrinks(position, half)
    turn = (scaling.magnitude or 1) * np.exp(1j * np.arange(len(x))[:, None] * frequencies)
    turned = (x[:, :half] + 1j * x[:, half : 2 * half]) * turn
    return np.concatenate([turned.real, turned.imag, x[:, 2 * half :]], axis=1)


def _shrinks(position: Position, half: int) -> np.ndarray:
    """What each pair's frequency is multiplied by: 1 / factor, or for YaRN a ramp from 1 to it."""
    scaling = position.scaling
    if scaling.kind != "yarn":
        return np.full(half, 1 / scaling.factor)
    # The pair that turns so many times within the original length, as if pairs were continuous.
    place = lambda turns: half * math.log(scaling.original_length / (2 * math.pi * turns), position.base)  # noqa: E731
    first, last = math.floor(place(scaling.high)), math.ceil(place(scaling.low))
    return np.interp(np.arange(half), [first, last], [1, 1 / scaling.factor])


def _bias(stack: Stack, params: dict, behind, causal: bool) -> np.ndarray:
    """`[H, T, S]`, or zeros `[H]`."""
    heads, position = stack.attention.heads, stack.position
    if position.kind == "alibi":  # heads is a power of two here
        return np.stack([-(2.0 ** (-8 * (head + 1) / heads)) * np.abs(behind) for head in range(heads)])
    if position.kind != "relative":
        return np.zeros(heads)
    buckets = np.vectorize(lambda back: _bucket(position, int(back), causal))(behind)
    return np.moveaxis(params["relative"]["table"][buckets], -1, 0)


def _bucket(position: Position, back: int, causal: bool) -> int:
    side = position.buckets if causal else position.buckets // 2
    first = side if back < 0 and not causal else 0
    back, exact = (max(back, 0) if causal else abs(back)), side // 2
    if back < exact:
        return first + back
    share = math.log(back / exact) / math.log(position.distance / exact) * (side - exact)
    return first + min(exact + int(share + 1e-9), side - 1)


@functools.cache
def case_of(name: str) -> Case:
    return Case(name, GRID[name])


_WANTED = {
    "case": lambda config: True,
    "decoding": lambda config: config.decoder is not None,
    "encoding": lambda config: config.decoder is None,
    "crossing": lambda config: config.decoder is not None and config.encoder is not None,
}


def pytest_generate_tests(metafunc):
    for name, wanted in _WANTED.items():
        given = any(name in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
        if name in metafunc.fixturenames and not given:
            names = [grid_name for grid_name, config in GRID.items() if wanted(config)]
            metafunc.parametrize(name, names, indirect=True)


@pytest.fixture
def case(request) -> Case:
    return case_of(request.param)


decoding = encoding = crossing = case


@pytest.fixture(name="lively", scope="session")
def lively_fixture():
    return lively


@pytest.fixture(name="quick", scope="session")
def quick_fixture():
    return quick
