"""Published `config.json` files are the models of the zoo, and every refusal of a family names its field."""

import dataclasses

import pytest

from transformer import models
from transformer.interop.families import FAMILIES
from transformer.interop.fields import Fields
from transformer.interop.save import canonical, family_of

GPT2 = dict(
    activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=50256,
    embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05, model_type="gpt2", n_ctx=1024,
    n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None,
    summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
    task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, vocab_size=50257,
)  # fmt: skip
PYTHIA = dict(
    architectures=["GPTNeoXForCausalLM"], bos_token_id=0, eos_token_id=0, hidden_act="gelu", hidden_size=512,
    initializer_range=0.02, intermediate_size=2048, layer_norm_eps=1e-05, max_position_embeddings=2048,
    model_type="gpt_neox", num_attention_heads=8, num_hidden_layers=6, rotary_emb_base=10000, rotary_pct=0.25,
    tie_word_embeddings=False, torch_dtype="float16", transformers_version="4.24.0", use_cache=True,
    use_parallel_residual=True, vocab_size=50304,
)  # fmt: skip
LLAMA2 = dict(
    _name_or_path="meta-llama/Llama-2-7b-hf", architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2,
    hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=11008, max_position_embeddings=4096,
    model_type="llama", num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1,
    rms_norm_eps=1e-05, rope_scaling=None, tie_word_embeddings=False, torch_dtype="float16", use_cache=True,
    vocab_size=32000,
)  # fmt: skip
LLAMA32 = dict(
    architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
    eos_token_id=128001, head_dim=64, hidden_act="silu", hidden_size=2048, initializer_range=0.02,
    intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False, model_type="llama", num_attention_heads=32,
    num_hidden_layers=16, num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192,
                      rope_type="llama3"),
    rope_theta=500000.0, tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True, vocab_size=128256,
)  # fmt: skip
MISTRAL = dict(
    architectures=["MistralForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
    initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768, model_type="mistral",
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0,
    sliding_window=4096, tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True, vocab_size=32000,
)  # fmt: skip
MIXTRAL = {name: value for name, value in MISTRAL.items() if name != "sliding_window"} | dict(
    architectures=["MixtralForCausalLM"], attention_dropout=0.0, model_type="mixtral", num_experts_per_tok=2,
    num_local_experts=8, output_router_logits=False, rope_theta=1e6, router_aux_loss_coef=0.02, sliding_window=None,
    transformers_version="4.36.0.dev0",
)  # fmt: skip
QWEN2 = dict(
    architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=151643, eos_token_id=151643,
    hidden_act="silu", hidden_size=896, initializer_range=0.02, intermediate_size=4864, max_position_embeddings=131072,
    max_window_layers=24, model_type="qwen2", num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2,
    rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=131072, tie_word_embeddings=True, torch_dtype="bfloat16",
    use_cache=True, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip
QWEN3 = QWEN2 | dict(
    architectures=["Qwen3ForCausalLM"], attention_bias=False, head_dim=128, hidden_size=1024, intermediate_size=3072,
    max_position_embeddings=40960, max_window_layers=28, model_type="qwen3", num_attention_heads=16,
    num_hidden_layers=28, num_key_value_heads=8, rope_scaling=None, rope_theta=1000000, sliding_window=None,
)  # fmt: skip
GEMMA = dict(
    architectures=["GemmaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1,
    head_dim=256, hidden_act="gelu", hidden_size=2048, initializer_range=0.02, intermediate_size=16384,
    max_position_embeddings=8192, model_type="gemma", num_attention_heads=8, num_hidden_layers=18,
    num_key_value_heads=1, pad_token_id=0, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=10000.0,
    torch_dtype="bfloat16", use_cache=True, vocab_size=256000,
)  # fmt: skip
GEMMA2 = GEMMA | dict(
    architectures=["Gemma2ForCausalLM"], attn_logit_softcapping=50.0, cache_implementation="hybrid",
    final_logit_softcapping=30.0, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
    hidden_size=2304, intermediate_size=9216, model_type="gemma2", num_hidden_layers=26, num_key_value_heads=4,
    query_pre_attn_scalar=256, sliding_window=4096,
)  # fmt: skip
BERT = dict(
    architectures=["BertForMaskedLM"], attention_probs_dropout_prob=0.1, gradient_checkpointing=False,
    hidden_act="gelu", hidden_dropout_prob=0.1, hidden_size=768, initializer_range=0.02, intermediate_size=3072,
    layer_norm_eps=1e-12, max_position_embeddings=512, model_type="bert", num_attention_heads=12, num_hidden_layers=12,
    pad_token_id=0, position_embedding_type="absolute", transformers_version="4.6.0.dev0", type_vocab_size=2,
    use_cache=True, vocab_size=30522,
)  # fmt: skip
ROBERTA = BERT | dict(
    architectures=["RobertaForMaskedLM"], bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-05,
    max_position_embeddings=514, model_type="roberta", pad_token_id=1, type_vocab_size=1, vocab_size=50265,
)  # fmt: skip
T5 = dict(
    architectures=["T5ForConditionalGeneration"], d_ff=2048, d_kv=64, d_model=512, decoder_start_token_id=0,
    dropout_rate=0.1, eos_token_id=1, initializer_factor=1.0, is_encoder_decoder=True, layer_norm_epsilon=1e-06,
    model_type="t5", n_positions=512, num_heads=8, num_layers=6, output_past=True, pad_token_id=0,
    relative_attention_num_buckets=32, task_specific_params={"summarization": {"prefix": "summarize: "}},
    vocab_size=32128,
)  # fmt: skip
T5_V11 = T5 | dict(
    d_ff=1024, feed_forward_proj="gated-gelu", num_decoder_layers=8, num_heads=6, num_layers=8,
    tie_word_embeddings=False,
)  # fmt: skip
PUBLISHED = {  # fields, and the tensors that tell what is beside the body
    "gpt2-small": (GPT2, ()),
    "pythia-70m": (PYTHIA, ()),
    "llama2-7b": (LLAMA2, ()),
    "llama3.2-1b": (LLAMA32, ()),
    "mistral-7b": (MISTRAL, ()),
    "mixtral-8x7b": (MIXTRAL, ()),
    "qwen2-0.5b": (QWEN2, ()),
    "qwen3-0.6b": (QWEN3, ()),
    "gemma-2b": (GEMMA, ()),
    "gemma2-2b": (GEMMA2, ()),
    "bert-base": (BERT, ("bert.pooler.dense.weight",)),
    "roberta-base": (ROBERTA, ("roberta.pooler.dense.weight",)),
    "t5-small": (T5, ()),
    "t5-v1.1-small": (T5_V11, ("lm_head.weight", "shared.weight")),
}


class Names(frozenset):
    def same(self, one, other):
        return False


def read(values: dict, tensors=()) -> models.ModelConfig:
    fields = Fields(values, "config.json")
    family = fields.choose("model_type", FAMILIES)
    config = family.read(fields, Names(tensors))
    fields.finish()
    return config


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_model_of_the_zoo(name):
    assert canonical(read(*PUBLISHED[name])) == canonical(models.get(name))


REFUSED = {
    "gpt2": (GPT2, dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True has no"),
    "gpt2 activation": (GPT2, dict(activation_function="mish"), "activation_function='mish' has no counterpart"),
    "gpt2 cross": (GPT2, dict(add_cross_attention=True), "the field add_cross_attention=True is not known"),
    "bert": (BERT, dict(position_embedding_type="relative_key"), "position_embedding_type='relative_key' has no"),
    "bert as a decoder": (BERT, dict(is_decoder=True), "the field is_decoder=True is not known"),
    "roberta": (ROBERTA, dict(pad_token_id=-1), "pad_token_id=-1 cannot work: it counts positions"),
    "roberta length": (ROBERTA, dict(max_position_embeddings=2), "max_position_embeddings leaves no position"),
    "roberta null": (ROBERTA, dict(pad_token_id=None), "pad_token_id=None is of the wrong type"),
    "roberta head": (ROBERTA, dict(hidden_act="relu"), "hidden_act='relu' has no counterpart here; only 'gelu' has"),
    "gemma": (GEMMA, dict(hidden_activation="silu"), "hidden_act and hidden_activation differ"),
    "gemma directions": (GEMMA, dict(use_bidirectional_attention=True), "use_bidirectional_attention=True has no"),
    "gemma2 scale": (GEMMA2, dict(query_pre_attn_scalar=0), "query_pre_attn_scalar=0 cannot work: it must be positive"),
    "gemma2 scale below 0": (GEMMA2, dict(query_pre_attn_scalar=-4.0), "query_pre_attn_scalar=-4 cannot work"),
    "gemma2 cap": (GEMMA2, dict(attn_logit_softcapping=0), "attention.softcap=0.0 cannot work"),
    "gemma2 layers": (GEMMA2, dict(layer_types=["full_attention"]), "layer_types has 1 entries for 26 layers"),
    "gemma2 kinds": (GEMMA2, dict(layer_types=["chunked"] * 26), "layer_types holds 'chunked'; there are full"),
    "gemma2 lists": (GEMMA2, dict(layer_types=[["full_attention"]] * 26), r"layer_types holds \['full_attention'\]"),
    "gemma2 windows": (
        GEMMA2, dict(layer_types=["sliding_attention"] * 26, sliding_window=None), "but sliding_window is None",
    ),
    "mistral": (MISTRAL, dict(sliding_window=0), "sliding_window=0 cannot work"),
    "mixtral": (MIXTRAL, dict(num_experts_per_tok=9), "mlp.experts.active=9 cannot work: .* at most count=8"),
    "mixtral count": (MIXTRAL, dict(num_local_experts=10**9), "num_local_experts=1000000000 cannot work"),
    "qwen2": (QWEN2, dict(num_hidden_layers=10**9), "num_hidden_layers=1000000000 cannot work"),
    "llama": (LLAMA2, dict(num_attention_heads=5000, num_key_value_heads=5000), "attention.head_width=0 cannot work"),
    "pythia heads": (PYTHIA, dict(num_attention_heads=1000), "of a head of width 0 cannot turn"),
    "pythia": (PYTHIA, dict(rotary_pct=1.5), "1.5 of a head of width 64 cannot turn"),
    "t5": (T5, dict(feed_forward_proj="gated-mish"), "feed_forward_proj='gated-mish' has no counterpart"),
    "t5 twice": (T5, dict(dense_act_fn="gelu_new"), "dense_act_fn or is_gated_act contradicts feed_forward"),
    "t5 gates": (T5, dict(is_gated_act=True), "dense_act_fn or is_gated_act contradicts"),
    "t5 buckets": (T5, dict(relative_attention_num_buckets=3), "buckets=3 cannot work"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_family_cannot_be_is_refused(what):
    values, changes, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        read(values | changes, ("lm_head.dense.weight",) if what == "roberta head" else ())


MARIAN = dict(
    model_type="marian", vocab_size=60, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
    decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("add_bias_logits", True),
        ("add_final_layer_norm", True),
        ("normalize_before", True),
        ("normalize_embedding", True),
        ("share_encoder_decoder_embeddings", False),
        ("tie_word_embeddings", False),
    ],
)
def test_a_marian_of_another_architecture_is_refused(name, value):
    read(MARIAN | {name: not value})
    with pytest.raises(ValueError, match=f"{name}={value} has no counterpart here; only {not value} has"):
        read(MARIAN | {name: value})


def test_gemma_that_attends_to_the_left_alone_may_say_so():
    for value in (None, False):
        assert read(GEMMA | dict(use_bidirectional_attention=value)) == read(GEMMA)


def test_where_the_gemmas_first_said_gelu_they_meant_tanh():
    assert read(GEMMA).decoder.mlp.activation == "gelu_tanh"
    later = {name: value for name, value in GEMMA.items() if name != "hidden_act"} | dict(hidden_activation="gelu")
    assert read(later).decoder.mlp.activation == "gelu_tanh"


def test_padding_may_be_the_first_id_of_a_roberta():
    assert read(ROBERTA | dict(pad_token_id=0)).length == 513


@pytest.mark.parametrize(
    ("values", "windows"),
    [
        (QWEN2, ()),
        (QWEN2 | dict(use_sliding_window=True, max_window_layers=22, sliding_window=9), (0,) * 22 + (9, 9)),
        (QWEN2 | dict(use_sliding_window=True, sliding_window=None), ()),
        (GEMMA2, (4096, 0) * 13),
        (GEMMA2 | dict(sliding_window=None), ()),
        (GEMMA2 | dict(layer_types=["full_attention"] * 26), ()),
        (GEMMA2 | dict(num_hidden_layers=3, sliding_window=8), (8, 0, 8)),
        (MISTRAL, (4096,)),
        (MISTRAL | dict(sliding_window=None), ()),
        (MIXTRAL, ()),
        (MIXTRAL | dict(sliding_window=4096), (4096,)),
        ({name: value for name, value in MISTRAL.items() if name != "sliding_window"}, (4096,)),
    ],
)
def test_the_window_of_every_layer(values, windows):
    assert read(values).decoder.attention.windows == windows


ACCEPTED = {  # what published configs say besides, and what changes nothing
    "qwen2.5": (QWEN2, dict(use_mrope=False)),
    "smollm2": (
        LLAMA2,
        {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
    ),
    "gpt-neox-20b": (PYTHIA, dict(hidden_act="gelu_fast", attention_probs_dropout_prob=0, hidden_dropout_prob=0)),
    "gemma-2-9b": (GEMMA2, dict(sliding_window_size=4096)),
    "bert-base-chinese": (BERT, dict(directionality="bidi", pooler_fc_size=768, pooler_type="first_token_transform")),
    "vicuna": (LLAMA2, dict(max_sequence_length=2048)),
    "unsloth": (LLAMA2, dict(unsloth_version="2024.9", unsloth_fixed=True)),
    "fine-tuned": (GPT2, dict(xla_device=True, neftune_noise_alpha=5.0, custom_pipelines={})),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_published_configs_say_besides_is_passed(name):
    fields, more = ACCEPTED[name]
    tensors = ("bert.pooler.dense.weight",) if fields is BERT else ()
    changed = {"hidden_act": "gelu_new"} if "hidden_act" in more else {}
    assert read({**fields, **more}, tensors) == read({**fields, **changed}, tensors)


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        (QWEN2, dict(use_mrope=True)),
        (LLAMA2, dict(rope_interleaved=True)),
        (GEMMA2, dict(sliding_window_size=2048)),
        (LLAMA2, dict(rope_scaling=None, rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5))),
    ],
)
def test_what_would_change_the_model_is_not(fields, more):
    with pytest.raises(ValueError, match=next(reversed(more)) if "rope_parameters" not in more else "partial_rotary"):
        read({**fields, **more}, ())


def test_llama_1_has_a_length_where_its_config_has_none():
    assert read({name: value for name, value in LLAMA2.items() if name != "max_position_embeddings"}, ()).length == 2048


def test_what_a_mixtral_leaves_out_is_as_its_publishers_library_has_it():
    left = ("rms_norm_eps", "rope_theta", "num_local_experts", "num_experts_per_tok", "num_key_value_heads")
    assert read({name: value for name, value in MIXTRAL.items() if name not in left}) == read(MIXTRAL)


def test_what_only_training_reads_of_experts_is_no_difference():
    config = models.get("mixtral-8x7b")
    experts = dataclasses.replace(config.decoder.mlp.experts, balance=0.5, router_z=0.5)
    mlp = dataclasses.replace(config.decoder.mlp, experts=experts)
    other = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, mlp=mlp))
    assert canonical(other) == canonical(config)
    experts = dataclasses.replace(experts, capacity=1.25)
    mlp = dataclasses.replace(mlp, experts=experts)
    other = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, mlp=mlp))
    with pytest.raises(ValueError, match=r"nearest, mixtral, .* decoder\.mlp\.experts\.capacity=1.25"):
        family_of(other, "mixtral")
