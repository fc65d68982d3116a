"""Small configs of ours, one for each family that has such a model, and parameters for them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from transformer import models
from transformer.models import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack

LLAMA = Stack(2, Attention(4, 2, head_width=10), Mlp(40))
GPT2 = Stack(
    2, Attention(3, bias=True, output_bias=True), Mlp(96, "gelu_tanh", gated=False, bias=True),
    Norm("layer", 1e-5, bias=True), position=Position("learned"),
)  # fmt: skip
BERT = dataclasses.replace(
    GPT2, mlp=Mlp(40, "gelu", gated=False, bias=True), norm_placement="post", embedding_norm=True
)
T5 = Stack(
    2, Attention(3, head_width=10, scale=1.0), Mlp(40, "relu", gated=False), position=Position("relative")
)  # fmt: skip
MARIAN = dataclasses.replace(
    BERT, embedding_norm=False, norm=Norm("layer", 1e-5, bias=True), position=Position("sinusoidal", halves=True)
)


ROBERTA = dataclasses.replace(BERT, position=Position("learned", offset=2))


def decoder(stack: Stack, **options) -> ModelConfig:
    return ModelConfig(60, 24, decoder=stack, length=32, **options)


def encoder(stack: Stack, **options) -> ModelConfig:
    return ModelConfig(60, 24, encoder=stack, length=32, **options)


def both(one: Stack, other: Stack, **options) -> ModelConfig:
    return ModelConfig(60, 24, encoder=one, decoder=other, length=32, **options)


def changed(stack: Stack, path: str, value) -> Stack:
    """A stack with one field replaced, `mlp.activation` or `parallel`."""
    first, _, last = path.partition(".")
    return dataclasses.replace(
        stack, **{first: dataclasses.replace(getattr(stack, first), **{last: value})} if last else {first: value}
    )


def parameters(config: ModelConfig, dtype: str = "float32") -> tuple[models.Transformer, dict]:
    """A model with numbers that all differ."""
    model = models.Transformer(config)
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    source = token if config.encoder and config.decoder else None
    shapes = jax.eval_shape(model.init, jax.random.key(0), token, source=source)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    random = np.random.default_rng(0)
    return model, tree.unflatten([random.standard_normal(leaf.shape).astype(jnp.dtype(dtype)) for leaf in leaves])


SAVED = {  # families that a config of ours is saved as
    "gpt2": decoder(GPT2),
    "gpt_neox": decoder(
        changed(changed(GPT2, "position", Position(fraction=0.5)), "parallel", True), readout=Readout(False)
    ),
    "llama": decoder(LLAMA),
    "mistral": decoder(changed(LLAMA, "attention.windows", (5,))),
    "qwen2": decoder(changed(changed(LLAMA, "attention.bias", True), "attention.head_width", None)),
    "qwen3": decoder(changed(LLAMA, "attention.query_key_norm", True)),
    "gemma": decoder(
        changed(changed(LLAMA, "norm.zero_centred", True), "mlp.activation", "gelu_tanh"), embedding_scale=True
    ),
    "gemma2": decoder(
        changed(changed(changed(LLAMA, "norm.zero_centred", True), "norm_placement", "both"), "attention.softcap", 9.0),
        embedding_scale=True,
        readout=Readout(softcap=5.0),
    ),
    "bert": encoder(BERT, token_types=2, pooler=True),
    "roberta": encoder(ROBERTA, token_types=1, readout=Readout(bias=True, transform=True)),
    "t5": both(T5, changed(T5, "depth", 3), readout=Readout(scale=True)),
    "marian": both(MARIAN, MARIAN, readout=Readout(bias=True)),
}
