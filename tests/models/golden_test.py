"""The first training step of one small model of each family, to the digit.

These numbers were printed by this file. They guard what no property states: the order in which keys are split, the
defaults, the initial scales. A change that is meant to alter them (say, a new default or initialiser) replaces them:

    GOLDEN=print python -m pytest -q -s tests/models/golden_test.py

A change that is not meant to alter them has a mistake.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, Init, Mlp, ModelConfig, Norm, Position, Readout, Stack
from transformer.models.transformer import Transformer

_LAYER = Norm("layer", 1e-5, bias=True)
_BIASED = Attention(4, bias=True, output_bias=True)


def _gpt2():
    stack = Stack(2, _BIASED, Mlp(64, "gelu_tanh", gated=False, bias=True), _LAYER, position=Position("learned"))
    return ModelConfig(32, 16, decoder=stack, length=16)


def _llama():
    return ModelConfig(32, 16, decoder=Stack(2, Attention(4, 2), Mlp(40)), readout=Readout(tied=False))


def _bert():
    mlp = Mlp(64, "gelu", gated=False, bias=True)
    stack = Stack(2, _BIASED, mlp, _LAYER, "post", Position("learned"), embedding_norm=True)
    readout = Readout(bias=True, transform=True)
    return ModelConfig(32, 16, encoder=stack, length=16, token_types=2, readout=readout, init=Init(output=1.0))


def _t5():
    stack = Stack(2, Attention(4, scale=1.0), Mlp(64, "relu", gated=False), position=Position("relative"))
    init = Init(embedding=1.0, output=1.0)
    return ModelConfig(32, 16, encoder=stack, decoder=stack, readout=Readout(scale=True), init=init)


def _original():
    mlp = Mlp(64, "relu", gated=False, bias=True)
    stack = Stack(2, Attention(4), mlp, _LAYER, "post", Position("sinusoidal"))
    init = Init("xavier", scale=1.0, embedding=0.25, output=1.0)
    return ModelConfig(32, 16, encoder=stack, decoder=stack, embedding_scale=True, init=init)


FAMILIES = {"gpt2": _gpt2, "llama": _llama, "bert": _bert, "t5": _t5, "original": _original}
GOLDEN = {
    "gpt2": {"gradient": 2.164244, "last": 0.01873162, "loss": 3.485094, "peak": 0.3074594, "spread": 0.08877605},
    "llama": {"gradient": 1.477319, "last": -0.1440847, "loss": 3.477057, "peak": 0.1904474, "spread": 0.07630728},
    "bert": {"gradient": 1.807509, "last": -0.05406678, "loss": 3.455923, "peak": 0.2103845, "spread": 0.08200823},
    "t5": {"gradient": 0.8441256, "last": 0.3269066, "loss": 4.606862, "peak": 4.723351, "spread": 1.232192},
    "original": {"gradient": 3.812935, "last": 0.8886524, "loss": 4.15511, "peak": 2.603213, "spread": 1.021509},
}


def first_step(config: ModelConfig, quick) -> dict[str, float]:
    """Loss, norm of the gradient, and what the logits are like, at a seeded start."""
    draw = np.random.default_rng(0)
    tokens, targets, source = draw.integers(0, config.vocab, (3, 2, 8))
    arguments = {"source": source} if config.encoder and config.decoder else {}
    model = Transformer(config)

    @quick
    def run():
        params = model.init(jax.random.key(0), tokens, **arguments)["params"]

        def loss(params):
            logits = model.apply({"params": params}, tokens, **arguments)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)), logits

        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)))
        return {
            "loss": value,
            "gradient": norm,
            "spread": jnp.std(logits),
            "peak": jnp.max(logits),
            "last": logits[1, 7, 5],
        }

    return {name: float(value) for name, value in run().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_step_is_the_golden_one(family, quick):
    found = first_step(FAMILIES[family](), quick)
    if os.environ.get("GOLDEN") == "print":
        print(f'\n    "{family}": {{' + ", ".join(f'"{name}": {value:.7g}' for name, value in found.items()) + "},")
        return
    # A float32 sum of a few hundred terms, ordered differently by another compiler, moves by less than 1e-5.
    assert found == pytest.approx(GOLDEN[family], rel=1e-4), (
        f"the first step of {family} has changed. If it was meant to, print the new numbers with "
        "GOLDEN=print python -m pytest -q -s tests/models/golden_test.py, put them here, and say why in CHANGELOG.md"
    )
