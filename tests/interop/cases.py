"""Small models of every family, unlike each other, as their `config.json` describes them, and weights for them.

The weights are a function of a tensor's name and shape, so that the publisher's library and this one each make them.
"""

from __future__ import annotations

import json
import zlib
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file


class Case(NamedTuple):
    family: str
    architecture: str
    fields: dict

    @property
    def sequence_to_sequence(self) -> bool:
        return self.family in ("t5", "marian")

    @property
    def encodes(self) -> bool:
        return self.family in ("bert", "roberta")


GPT2 = dict(vocab_size=60, n_embd=24, n_layer=2, n_head=3, n_positions=96)
ENCODER = dict(
    vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=32, type_vocab_size=2,
)  # fmt: skip
DECODER = dict(
    vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
    intermediate_size=40, max_position_embeddings=128,
)  # fmt: skip
NEOX = dict(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    max_position_embeddings=128,
)  # fmt: skip
T5 = dict(
    vocab_size=60, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=3, pad_token_id=0, decoder_start_token_id=0
)
MARIAN = dict(
    vocab_size=60, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
    decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=128,
    pad_token_id=59, decoder_start_token_id=59,
)  # fmt: skip


def _rope(base=10_000.0, **scaling):
    return dict(rope_theta=base, rope_scaling=scaling or None)


CASES = {
    "gpt2": Case("gpt2", "GPT2LMHeadModel", GPT2),
    "gpt2-untied": Case("gpt2", "GPT2LMHeadModel", GPT2 | dict(tie_word_embeddings=False, n_inner=36, n_layer=3)),
    "gpt2-relu": Case(
        "gpt2", "GPT2LMHeadModel", GPT2 | dict(activation_function="relu", n_head=2, layer_norm_epsilon=1e-3)
    ),
    "gpt2-unscaled": Case(
        "gpt2", "GPT2LMHeadModel", GPT2 | dict(activation_function="gelu", n_head=1, scale_attn_weights=False)
    ),
    "bert": Case("bert", "BertForMaskedLM", ENCODER),
    "bert-pooler": Case("bert", "BertModel", ENCODER | dict(hidden_act="relu", num_attention_heads=2)),
    "bert-untied": Case(
        "bert", "BertForMaskedLM", ENCODER | dict(tie_word_embeddings=False, hidden_act="gelu_new", num_hidden_layers=3)
    ),
    "bert-pretraining": Case(
        "bert", "BertForPreTraining", ENCODER | dict(hidden_act="silu", layer_norm_eps=1e-5, type_vocab_size=4)
    ),
    "roberta": Case(
        "roberta", "RobertaForMaskedLM", ENCODER | dict(type_vocab_size=1, max_position_embeddings=34, pad_token_id=1)
    ),
    "roberta-pad": Case(
        "roberta",
        "RobertaForMaskedLM",
        ENCODER | dict(pad_token_id=3, max_position_embeddings=36, layer_norm_eps=1e-5, tie_word_embeddings=False),
    ),
    "roberta-pooler": Case(
        "roberta",
        "RobertaModel",
        ENCODER | dict(hidden_act="relu", type_vocab_size=1, pad_token_id=1, num_attention_heads=4),
    ),
    "t5": Case("t5", "T5ForConditionalGeneration", T5),
    "t5-v1.1": Case(
        "t5",
        "T5ForConditionalGeneration",
        T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=3),
    ),
    "t5-buckets": Case(
        "t5",
        "T5ForConditionalGeneration",
        T5
        | dict(
            feed_forward_proj="gated-silu",
            relative_attention_num_buckets=8,
            relative_attention_max_distance=10,
            num_heads=2,
            d_kv=9,
        ),
    ),
    "llama": Case("llama", "LlamaForCausalLM", DECODER | _rope()),
    "llama-tied": Case(
        "llama",
        "LlamaForCausalLM",
        DECODER
        | dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, num_key_value_heads=1, head_dim=14)
        | _rope(
            500_000.0,
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "llama-linear": Case(
        "llama",
        "LlamaForCausalLM",
        DECODER | dict(num_key_value_heads=4, head_dim=6, hidden_act="gelu") | _rope(rope_type="linear", factor=4.0),
    ),
    "llama-yarn": Case(
        "llama",
        "LlamaForCausalLM",
        DECODER | dict(head_dim=16) | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    "llama-dynamic": Case(
        "llama",
        "LlamaForCausalLM",
        DECODER | dict(head_dim=8, max_position_embeddings=7) | _rope(rope_type="dynamic", factor=2.0),
    ),
    "mistral": Case("mistral", "MistralForCausalLM", DECODER | dict(sliding_window=5, rms_norm_eps=1e-5) | _rope()),
    "mistral-full": Case("mistral", "MistralForCausalLM", DECODER | dict(sliding_window=None, head_dim=6) | _rope(1e6)),
    "mistral-tied": Case(
        "mistral",
        "MistralForCausalLM",
        DECODER | dict(sliding_window=3, tie_word_embeddings=True, num_key_value_heads=4, hidden_act="relu") | _rope(),
    ),
    "mixtral": Case("mixtral", "MixtralForCausalLM", DECODER | dict(num_local_experts=4) | _rope(1e6)),
    "mixtral-window": Case(
        "mixtral",
        "MixtralForCausalLM",
        DECODER
        | dict(num_local_experts=5, num_experts_per_tok=3, sliding_window=4, num_key_value_heads=4, hidden_act="gelu")
        | _rope(),
    ),
    "mixtral-tied": Case(
        "mixtral",
        "MixtralForCausalLM",
        DECODER
        | dict(num_local_experts=3, num_experts_per_tok=1, tie_word_embeddings=True, rms_norm_eps=1e-3, head_dim=6)
        | _rope(),
    ),
    "qwen2": Case("qwen2", "Qwen2ForCausalLM", DECODER | dict(head_dim=6) | _rope(1e6)),
    "qwen2-tied": Case(
        "qwen2",
        "Qwen2ForCausalLM",
        DECODER | dict(head_dim=6, tie_word_embeddings=True, num_key_value_heads=1) | _rope(),
    ),
    "qwen2-window": Case(
        "qwen2",
        "Qwen2ForCausalLM",
        DECODER
        | dict(
            head_dim=6,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            num_hidden_layers=3,
            num_key_value_heads=4,
        )
        | _rope(),
    ),
    "qwen3": Case("qwen3", "Qwen3ForCausalLM", DECODER | dict(tie_word_embeddings=True) | _rope(1e6)),
    "qwen3-biased": Case(
        "qwen3", "Qwen3ForCausalLM", DECODER | dict(attention_bias=True, num_key_value_heads=4, head_dim=6) | _rope()
    ),
    "qwen3-window": Case(
        "qwen3",
        "Qwen3ForCausalLM",
        DECODER
        | dict(
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=2,
            num_hidden_layers=3,
            num_key_value_heads=1,
            rms_norm_eps=1e-5,
        )
        | _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.3),
    ),
    "gemma": Case("gemma", "GemmaForCausalLM", DECODER | dict(num_key_value_heads=1) | _rope()),
    "gemma-wide": Case(
        "gemma",
        "GemmaForCausalLM",
        DECODER | dict(head_dim=16, num_key_value_heads=4, attention_bias=True, rms_norm_eps=1e-5) | _rope(),
    ),
    "gemma-untied": Case(
        "gemma",
        "GemmaForCausalLM",
        DECODER | dict(tie_word_embeddings=False, hidden_act="gelu_pytorch_tanh", num_hidden_layers=3) | _rope(5e4),
    ),
    "gemma2": Case(
        "gemma2",
        "Gemma2ForCausalLM",
        DECODER
        | dict(sliding_window=5, query_pre_attn_scalar=14, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
        | _rope(),
    ),
    "gemma2-odd": Case(
        "gemma2",
        "Gemma2ForCausalLM",
        DECODER
        | dict(num_hidden_layers=3, sliding_window=4, num_key_value_heads=4, head_dim=6, final_logit_softcapping=None)
        | _rope(),
    ),
    "gemma2-uncapped": Case(
        "gemma2",
        "Gemma2ForCausalLM",
        DECODER
        | dict(
            attn_logit_softcapping=None,
            layer_types=["full_attention", "sliding_attention"],
            sliding_window=3,
            num_key_value_heads=1,
            hidden_activation="silu",
        )
        | _rope(),
    ),
    "gpt_neox": Case("gpt_neox", "GPTNeoXForCausalLM", NEOX),
    "gpt_neox-serial": Case(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        NEOX | dict(use_parallel_residual=False, rotary_pct=1.0, attention_bias=False, hidden_act="gelu_new"),
    ),
    "gpt_neox-tied": Case(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        NEOX | dict(tie_word_embeddings=True, rotary_pct=0.5, rotary_emb_base=500, hidden_act="relu", hidden_size=48),
    ),
    "marian": Case("marian", "MarianMTModel", MARIAN | dict(scale_embedding=True, activation_function="swish")),
    "marian-deep": Case(
        "marian",
        "MarianMTModel",
        MARIAN | dict(encoder_layers=3, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=30),
    ),
    "marian-relu": Case(
        "marian", "MarianMTModel", MARIAN | dict(activation_function="relu", d_model=30, encoder_attention_heads=5)
    ),
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of a size at which heads differ, norms matter and nothing saturates.

    The scales of norms have either sign: no token is then its own likeliest successor, as it is in random models that
    read out with the table they embed with. T5 does not scale its scores, so its queries start small:
    otherwise scores are so large that float32 alone makes patterns differ by more than any error that matters.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = 0.2 if name.endswith("bias") else 1.0 if len(shape) == 1 else 0.3
    if name.endswith("Attention.q.weight"):
        scale = shape[0] ** -0.5
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def write(folder, case: Case, tensors: dict[str, tuple[int, ...]]) -> None:
    """A folder as the publisher's library leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_type": case.family, "architectures": [case.architecture], **case.fields}
    (folder / "config.json").write_text(json.dumps(content))
    save_file({name: weight(name, shape) for name, shape in tensors.items()}, folder / "model.safetensors")


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Two rows of ids: nine real tokens padded to twelve on the right, and six on the left."""
    rng = np.random.default_rng(7)
    tokens = rng.integers(4, 59, (2, 12)).astype(np.int32)
    mask = np.ones((2, 12), bool)
    mask[0, 9:] = mask[1, :6] = False
    tokens[~mask] = case.fields.get("pad_token_id", 0)
    return {"tokens": tokens, "mask": mask, "positions": np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)}


def target() -> np.ndarray:
    """What the decoder of a sequence-to-sequence model reads: two rows of ids."""
    return np.random.default_rng(8).integers(4, 59, (2, 10)).astype(np.int32)
