"""A config that is damaged or means harm is an error in one line, before anything is made or run."""

import importlib
import json
import re

import pytest

from tests.interop import folders
from transformer import interop
from transformer.interop.weights import SINGLE

subject = importlib.import_module("transformer.interop.load")


def refused(words: str):
    return pytest.raises(ValueError, match=words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"cannot be read as JSON \(.*\): fetch it again"),
        ('{"model_type": "llama"', "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        ("[" * 200_000, "cannot be read as JSON"),
        ('{"a": ' * 200_000, "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ("3", "holds no JSON object"),
        ("{}", "has no field 'model_type'"),
        ('{"model_type": "mamba"}', "model_type='mamba' has no counterpart here; choose one of gpt2, "),
        ('{"model_type": ["llama"]}', "model_type=.* is of the wrong type"),
        ('{"model_type": "llama"}', "has no field '"),
    ],
)
def test_a_config_that_says_no_model_is_refused(llama, content, words):
    (llama / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(rf"config\.json.*{words}") as error:
        interop.load(llama)
    assert "\n" not in str(error.value)


HUGE = 10**30
WRONG = {
    "vocab_size": (0, -1, "60", 60.0, True, None, [60], HUGE),
    "num_hidden_layers": (0, 10**9, 2.0, None),
    "num_attention_heads": (0, -4, 3, 10**9),
    "num_key_value_heads": (0, 3, "2"),
    "head_dim": (0, 9, 2**24, HUGE),
    "hidden_size": (0, 25, 2**31 - 1),
    "intermediate_size": (-1, 41, HUGE),
    "max_position_embeddings": (0, "128", HUGE),
    "rms_norm_eps": (0, -1e-6, "1e-6", None),
    "rope_theta": (0, 1, "1e4", True),
    "hidden_act": ("mish", 3, None),
    "tie_word_embeddings": ("false", 1, None),
    "attention_bias": ("no", 0, True),
    "rope_scaling": ("linear", 2.0, {"rope_type": "linear"}),
    "quantization_config": ({"bits": 4},),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_cannot_work_is_refused_before_anything_is_made(llama, name, monkeypatch):
    monkeypatch.setattr(subject, "_params", lambda *arguments: pytest.fail("it is too late"))
    for value in WRONG[name]:
        folders.edit(llama, **{name: value})
        with refused(rf"^{re.escape(str(llama))}") as error:
            interop.load(llama)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_json_allows_beyond_numbers_is_refused(llama, text):
    path = llama / "config.json"
    content = json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": "here"})
    path.write_text(content.replace('"here"', text))
    with refused("rms_norm_eps=.* must be finite"):
        interop.load(llama)


def test_a_model_far_larger_than_its_files_is_refused_before_arrays_of_it_are_made(tmp_path):
    decoder = folders.write(tmp_path / "llama", "llama")
    folders.edit(decoder, head_dim=2**24, num_attention_heads=1, num_key_value_heads=1)
    with refused("asks for heads of width 16777216, but the largest tensor holds 1440: fetch it again"):
        interop.load(decoder)
    both = folders.write(tmp_path / "t5", "t5")
    folders.edit(both, relative_attention_num_buckets=2**24, relative_attention_max_distance=2**25)
    with refused("asks for buckets of distance 16777216, but"):
        interop.load(both)
    wide = 2**31 - 1
    folders.edit(decoder, head_dim=10, num_attention_heads=4, num_key_value_heads=2, hidden_size=wide, vocab_size=wide)
    with refused("has shape .* asks for"):
        interop.load(decoder)


def test_nothing_is_unpickled(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (llama / SINGLE).unlink()
    (llama / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with refused("is a pickle"):
        interop.load(llama)
    assert not (tmp_path / "ran").exists()
