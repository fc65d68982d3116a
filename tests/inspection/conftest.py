"""A small model with lively parameters, and its forward pass in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, ModelConfig, Stack
from transformer.models.transformer import Transformer

LENGTH, SOURCE = 5, 7


def build(roles: str, changes: dict | None = None, **stack):
    """A model, its parameters and the arguments of its call, with every size different from the others."""
    part = Stack(**{"depth": 2, "attention": Attention(heads=4, kv_heads=2, head_width=6), **stack})
    parts = {role: part for role in ("encoder", "decoder") if role in roles}
    model = Transformer(ModelConfig(vocab=11, width=8, length=16, **parts, **(changes or {})))
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.integers(0, 11, (2, LENGTH)))
    arguments = {"source": jnp.asarray(draw.integers(0, 11, (2, SOURCE)))} if len(parts) == 2 else {}
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, **arguments)["params"]
    return (
        model,
        jax.tree_util.tree_map_with_path(lambda path, leaf: lively(draw, path, leaf), shapes),
        tokens,
        arguments,
    )


def lively(draw, path, leaf):
    """Norm scales about 1, the embedding table about 0 with deviation 1, everything else with 0.3."""
    name = path[-1].key
    centre, deviation = (1.0, 0.2) if name == "scale" else (0.0, 1.0 if name == "table" else 0.3)
    return jnp.asarray(draw.normal(centre, deviation, leaf.shape), leaf.dtype)


class Reference:
    """The forward pass of RMS-normed, rotary, grouped-query, gated models, in float64; norms and halves as configured.

    Args:
      edit: `(site, array) -> array`, called at every site with its full name.
    """

    def __init__(self, model, params, edit=lambda site, x: x):
        self.config = model.config
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        self.edit = edit
        self.taps = {}

    def __call__(self, tokens, source=None):
        decodes = self.config.decoder is not None
        memory = self.stack("encoder", source if decodes else tokens) if self.config.encoder is not None else None
        x = self.stack("decoder", tokens, memory) if decodes else memory
        return self.tap("logits", x @ self.params["embedding"]["table"].T)

    def tap(self, site, x):
        self.taps[site] = self.edit(site, x)
        return self.taps[site]

    def stack(self, role, tokens, memory=None):
        stack, params = getattr(self.config, role), self.params[role]
        x = self.tap(f"{role}/embedding", self.params["embedding"]["table"][np.asarray(tokens)])
        for layer in range(stack.depth):
            block = jax.tree.map(lambda leaf: leaf[layer], params["blocks"])  # noqa: B023
            x = self.block(f"{role}/{layer}/", x, memory, block, stack, role == "decoder")
        x = x if stack.norm_placement == "post" else rms_norm(x, params["final_norm"]["scale"])
        return self.tap(f"{role}/final_norm", x)

    def block(self, site, x, memory, params, stack, causal):
        def half(x, name, part, read=None):
            norm = lambda which, x: rms_norm(x, params[f"{name}_{which}"]["scale"])  # noqa: E731
            if stack.norm_placement == "post":
                return norm("norm", x + part(x))
            out = part(norm("norm", x if read is None else read))
            return x + (norm("post_norm", out) if stack.norm_placement == "both" else out)

        x = start = self.tap(site + "residual_pre", x)
        seen = np.tri(x.shape[1], dtype=bool) if causal else np.ones((x.shape[1],) * 2, bool)
        x = half(x, "attention", lambda h: self.attention(site, h, h, params["attention"], seen, rotary))
        x = self.tap(site + "residual_mid", x)
        if memory is not None:
            seen, still = np.ones((x.shape[1], memory.shape[1]), bool), lambda x: x
            cross = lambda h: self.attention(site + "cross/", h, memory, params["cross_attention"], seen, still)  # noqa: E731
            x = self.tap(site + "residual_cross", half(x, "cross", cross))
        feed = lambda h: self.mlp(site + "mlp/", h, params["mlp"])  # noqa: E731
        x = half(x, "mlp", feed, start if stack.parallel else None)
        return self.tap(site + "residual_post", x)

    def attention(self, site, x, memory, params, seen, turn):
        heads = lambda name, x: np.einsum("btd,dhk->bthk", x, params[name]["kernel"])  # noqa: E731
        query = self.tap(site + "query", turn(heads("query", x)))
        key = self.tap(site + "key", turn(heads("key", memory)))
        value = self.tap(site + "value", heads("value", memory))
        key, value = (np.repeat(part, query.shape[2] // part.shape[2], axis=2) for part in (key, value))
        scores = self.tap(site + "scores", np.einsum("bthk,bshk->bhts", query, key) / np.sqrt(query.shape[3]))
        raised = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0.0)
        pattern = self.tap(site + "pattern", raised / raised.sum(axis=-1, keepdims=True))
        mixed = self.tap(site + "mixed", np.einsum("bhts,bshk->bthk", pattern, value))
        parts = self.tap(site + "head_output", np.einsum("bthk,hkd->bthd", mixed, params["output"]["kernel"]))
        return self.tap(site + "output", parts.sum(axis=2))

    def mlp(self, site, x, params):
        if "router" in params:
            return self.mixture(site, x, params)
        gate = x @ params["gate"]["kernel"]
        inner = self.tap(site + "inner", gate / (1 + np.exp(-gate)) * (x @ params["up"]["kernel"]))
        return self.tap(site + "outer", inner @ params["down"]["kernel"])

    def mixture(self, site, x, params):
        """Of every expert, weighted by the softmax over the two of the highest logits."""
        logits = self.tap(site + "router", x @ params["router"]["kernel"])
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights *= logits >= np.sort(logits, axis=-1)[..., -2:-1]
        weights /= weights.sum(axis=-1, keepdims=True)
        each = lambda name, x: np.einsum("...ni,nio->...no", x, params[name]["kernel"])  # noqa: E731
        spread = np.repeat(x[..., None, :], logits.shape[-1], axis=-2)  # [B, T, N, D]
        gate = each("gate", spread)
        outer = each("down", gate / (1 + np.exp(-gate)) * each("up", spread))
        return self.tap(site + "outer", np.einsum("btn,btnd->btd", weights, outer))


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def rotary(x):
    """Pair i of K / 2 is features i and i + K / 2, turned by position * 10000^(-2i / K)."""
    half = x.shape[3] // 2
    angles = np.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.fixture(scope="session", name="build")
def build_fixture():
    return build


@pytest.fixture(scope="session")
def reference():
    return Reference
