"""The GPT-2 of `transformers` with random weights; needs the extra `oracle`."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from transformer.models.config import ModelConfig


def gpt2(config: ModelConfig, dtype: str = "float32", attention: str = "sdpa") -> GPT2LMHeadModel:
    """A network of the config's size; its biases are there whatever the config says.

    Args:
      dtype: of all parameters.
      attention: the implementation; only "eager" forms patterns.
    """
    logging.set_verbosity_error()
    stack = config.decoder
    activation = {"gelu": "gelu", "gelu_tanh": "gelu_new"}[stack.mlp.activation]
    published = GPT2Config(
        vocab_size=config.vocab, n_positions=config.length, n_embd=config.width, n_layer=stack.depth,
        n_head=stack.attention.heads, n_inner=config.mlp_width(stack), activation_function=activation,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, layer_norm_epsilon=stack.norm.epsilon,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, attn_implementation=attention,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(published, dtype=getattr(torch, dtype)).eval()
