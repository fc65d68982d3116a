"""Fields are taken one by one; what nobody took is an error, unless it says nothing about what is computed."""

import json
import re

import pytest

from transformer.interop import fields as subject
from transformer.interop.fields import ACTIVATIONS, Fields, activation_name, check_heads
from transformer.models.config import Attention, ModelConfig, Stack


def made(**values) -> Fields:
    return Fields(values, "config.json")


def refused(words: str):
    return pytest.raises(ValueError, match=f"^config.json.*{words}")


def test_a_field_or_its_default_is_taken():
    assert made(a=3).take("a", 1) == 3
    assert made().take("a", 1) == 1
    assert made(a=None).take("a", None, (int, type(None))) is None


def test_a_required_field_that_is_missing_is_named():
    with refused("no field 'hidden_size'"):
        made().size("hidden_size")


@pytest.mark.parametrize(
    ("value", "default", "expected"),
    [
        ("3", 1, "a whole number"),
        (3.0, 1, "a whole number"),
        (True, 1, "a whole number"),
        (None, 1, "a whole number"),
        (1, True, "true or false"),
        ("true", True, "true or false"),
        (1, "relu", "a string"),
        ([], "relu", "a string"),
    ],
)
def test_another_type_than_the_defaults_is_refused(value, default, expected):
    with refused(rf"a=.*of the wrong type: {expected} was expected"):
        made(a=value).take("a", default)


def test_an_error_shows_only_the_beginning_of_a_long_value():
    nested = json.loads("[" * 500 + "]" * 500)
    for value in ("x" * 10**6, list(range(10**5)), {str(index): nested for index in range(100)}):
        with refused("a=") as error:
            made(a=value).size("a")
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [0, -1, 2**31, 10**400])
def test_a_size_is_positive_and_fits_32_bits(value):
    with refused(r"a=.* must lie in \[1, 2147483647\]"):
        made(a=value).size("a")
    assert made(a=2**31 - 1).size("a") == 2**31 - 1


def test_null_is_a_size_only_where_it_is_said_to_be():
    assert made(a=None).size("a", None) is None
    assert made(a=None).size("a", 3, null=True) is None
    assert made().size("a", 3, null=True) == 3
    with refused("a=None is of the wrong type: a whole number"):
        made(a=None).size("a", 3)


def test_a_depth_of_which_lists_are_made_is_bounded():
    assert made(a=subject.LAYERS).layers("a") == subject.LAYERS
    with refused("a=10001 cannot work"):
        made(a=subject.LAYERS + 1).layers("a")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_number_is_finite(text):
    with refused("a=.* must be finite"):
        Fields(json.loads(f'{{"a": {text}}}'), "config.json").number("a")


def test_whole_numbers_are_numbers_too():
    value = made(a=2).number("a", 1.0)
    assert (value, type(value)) == (2.0, float)
    assert made().number("a", None) is None
    assert made(a=None).number("a", 5.0, null=True) is None
    for wrong in ("1.0", True, None, [1.0]):
        with refused("a=.* of the wrong type: a whole number or a number"):
            made(a=wrong).number("a", 1.0)


def test_a_choice_is_made_from_a_table():
    table = {"gelu_new": "gelu_tanh", None: "none", False: "off"}
    assert [made(a=key).choose("a", table) for key in table] == ["gelu_tanh", "none", "off"]
    assert made().choose("a", table, None) == "none"
    with refused("a='mish' has no counterpart here; choose one of gelu_new, None, False"):
        made(a="mish").choose("a", table)
    with refused("a=True has no counterpart"):
        made(a=True).choose("a", table)
    with refused(r"a=\['gelu_new'\] is of the wrong type"):
        made(a=["gelu_new"]).choose("a", table)


def test_one_value_alone_is_expected():
    made(a="absolute").expect("a", "absolute")
    made().expect("a", "absolute")
    with refused("a='relative_key' has no counterpart here; only 'absolute' has"):
        made(a="relative_key").expect("a", "absolute")
    with refused("a=1 has no counterpart here; only 2 has"):
        made().expect("a", 2, default=1)


def test_a_field_that_nobody_took_is_named_with_the_nearest_one_that_is_known():
    fields = made(num_attention_head=4)
    fields.take("num_attention_heads", 4)
    with refused("the field num_attention_head=4 is not known.*did you mean 'num_attention_heads'"):
        fields.finish()
    with refused("the field zzz=0 is not known, so the model may not be the same$"):
        made(zzz=0).finish()


def test_what_was_taken_chosen_expected_or_ignored_is_known():
    fields = made(a=1, b=2, c=3, d="x", e=4)
    fields.take("a", 0)
    fields.size("b")
    fields.expect("c", 3)
    fields.choose("d", {"x": 0})
    fields.ignore("e", "f")
    fields.finish()


HARMLESS = """
    _name_or_path _attn_implementation architectures auto_map model_type transformers_version torch_dtype dtype
    use_cache bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_eos_token_id
    bad_words_ids initializer_range initializer_factor init_std gradient_checkpointing classifier_dropout
    classif_dropout num_labels id2label label2id problem_type task_specific_params output_attentions
    output_hidden_states output_past return_dict return_dict_in_generate chunk_size_feed_forward max_length
    min_length num_beams num_beam_groups early_stopping do_sample no_repeat_ngram_size length_penalty
    repetition_penalty diversity_penalty encoder_no_repeat_ngram_size temperature top_k top_p typical_p prefix
    summary_type summary_use_proj summary_first_dropout tokenizer_class remove_invalid_values num_return_sequences
    pretraining_tp is_encoder_decoder exponential_decay_length_penalty torchscript
    finetuning_task suppress_tokens begin_suppress_tokens
"""


@pytest.mark.parametrize("name", re.findall(r"\w+", HARMLESS))
def test_what_says_nothing_about_the_function_passes(name):
    made(**{name: "anything"}).finish()


@pytest.mark.parametrize(
    "name",
    ["quantization_config", "attn_logit_softcapping", "num_experts", "rope_scaling", "vocab_size", "logit_scale"],
)
def test_what_may_change_the_function_does_not(name):
    with refused(re.escape(name)):
        made(**{name: 1}).finish()


def test_fields_of_any_config_pass_at_the_value_that_changes_nothing():
    made(**subject.DEFAULTS).finish()
    for name, value in subject.DEFAULTS.items():
        with refused(f"the field {name}="):
            made(**{name: {"a": 1} if value == {} else 8 if value is None else not value}).finish()


def test_activations_come_back_by_a_name_that_means_the_same():
    assert ACTIVATIONS["gelu"] == "gelu"
    assert ACTIVATIONS["gelu_new"] == ACTIVATIONS["gelu_pytorch_tanh"] == "gelu_tanh"
    for ours in set(ACTIVATIONS.values()):
        assert ACTIVATIONS[activation_name(ours)] == ours


def test_heads_that_cannot_share_the_width_are_named():
    config = ModelConfig(60, 24, decoder=Stack(2, Attention(7, head_width=10)))
    with pytest.raises(ValueError, match=r"decoder\.attention\.head_width=10"):
        check_heads(config, "decoder")
    check_heads(ModelConfig(60, 24, decoder=Stack(2, Attention(3))), "decoder")
