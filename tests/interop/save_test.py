"""A saved folder is whole, and loads as the same model; what no family has is refused by name, and leaves nothing."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.interop import folders
from tests.interop.configs import LLAMA, SAVED, changed, decoder, parameters
from transformer import interop, models, text
from transformer.interop import weights
from transformer.interop.save import canonical
from transformer.models import Attention, Readout


def same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def refused(words: str):
    return pytest.raises(ValueError, match=words)


@pytest.mark.parametrize("family", SAVED)
def test_a_config_of_ours_finds_its_family_and_comes_back(tmp_path, family):
    model, params = parameters(SAVED[family])
    assert interop.save(tmp_path / "saved", model, params) == family
    again, params_again, tokenizer = interop.load(tmp_path / "saved")
    assert canonical(again.config) == canonical(model.config)
    assert tokenizer is None
    same(params, params_again)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_keep_their_type(tmp_path, dtype):
    model, params = parameters(SAVED["llama"], dtype)
    interop.save(tmp_path / "saved", model, params)
    assert json.loads((tmp_path / "saved/config.json").read_text())["torch_dtype"] == dtype
    same(params, interop.load(tmp_path / "saved")[1])


def test_what_only_training_reads_is_not_kept(tmp_path):
    stack = dataclasses.replace(LLAMA, dropout=0.1, attention=Attention(4, 2, head_width=10, dropout=0.2))
    config = decoder(stack, init=models.Init(scale=0.5), dtype="bfloat16", unroll=2, remat="full")
    model, params = parameters(config)
    assert interop.save(tmp_path / "saved", model, params) == "llama"
    assert canonical(interop.load(tmp_path / "saved")[0].config) == canonical(decoder(LLAMA))


def test_another_family_can_be_asked_for(tmp_path):
    model, params = parameters(decoder(changed(LLAMA, "attention.head_width", None), readout=Readout(False)))
    assert interop.save(tmp_path / "llama", model, params) == "llama"
    assert interop.save(tmp_path / "mistral", model, params, family="mistral") == "mistral"
    assert canonical(interop.load(tmp_path / "mistral")[0].config) == canonical(model.config)
    with refused(r"nearest, qwen2, has no counterpart for decoder\.attention\.bias=False"):
        interop.save(tmp_path / "qwen2", model, params, family="qwen2")
    with refused("nearest, bert, has no counterpart for a model of decoder"):
        interop.save(tmp_path / "bert", model, params, family="bert")
    with refused("family='mamba' is not known: choose one of gpt2, gpt_neox, llama"):
        interop.save(tmp_path / "mamba", model, params, family="mamba")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda params: {"params": params}, r"params: (params/)?\w+.* is (missing|not a parameter of this model)"),
        (lambda params: {}, "params: .* is missing"),
        (lambda params: params | {"extra": np.zeros(3, np.float32)}, "params: extra is not a parameter of this model"),
        (
            lambda params: params | {"embedding": {"table": np.zeros((61, 24), np.float32)}},
            r"has shape \(61, 24\), but",
        ),
        (lambda params: params | {"embedding": {"table": 0.5}}, r"has shape \(\), but the model has \(60, 24\)"),
        (lambda params: params | {"embedding": {"table": np.zeros((60, 24))}}, "is float64: make it one of float32"),
        (lambda params: params | {"embedding": {"table": np.zeros((60, 24), int)}}, "is int64: make it one of"),
    ],
)
def test_other_parameters_than_the_models_are_refused(tmp_path, wrong, words):
    model, params = parameters(SAVED["llama"])
    with refused(words):
        interop.save(tmp_path / "saved", model, wrong(params))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path):
    model, params = parameters(SAVED["llama"])
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("used", "file"):
        with refused(f"{name}' is in use: name a new or empty folder"):
            interop.save(tmp_path / name, model, params)
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "used"]


def test_an_empty_folder_or_a_link_to_one_will_do(tmp_path):
    model, params = parameters(SAVED["llama"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    interop.save(tmp_path / "link", model, params)
    assert (tmp_path / "link").is_symlink()
    same(params, interop.load(tmp_path / "empty")[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


@pytest.mark.parametrize("shard", [1000, weights.SHARD])
@pytest.mark.parametrize(
    ("error", "raised"), [(OSError("disk full"), ValueError), (KeyboardInterrupt("disk full"), KeyboardInterrupt)]
)
def test_nothing_is_left_of_a_folder_that_fails_midway(tmp_path, monkeypatch, error, raised, shard):
    model, params = parameters(SAVED["llama"])
    written = []
    write = weights._write

    def fail(path, arrays, kinds):
        if written or shard == weights.SHARD:
            raise error
        written.append(path)
        write(path, arrays, kinds)

    monkeypatch.setattr(weights, "_write", fail)
    with pytest.raises(raised, match="disk full"):
        interop.save(tmp_path / "saved", model, params, shard=shard)
    assert list(tmp_path.iterdir()) == []
    assert all(path.parent.parent == tmp_path for path in written)  # beside its place, so that moving it is one step


@pytest.mark.parametrize("there", [True, False])
def test_folders_are_left_as_they_were_where_saving_fails(tmp_path, monkeypatch, there):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    target = tmp_path / "deep" / "saved"
    if there:
        target.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(weights, "_write", full)
    with refused(r"saved' cannot be written \(No space left on device\): name another one"):
        interop.save(target, *parameters(SAVED["llama"]))
    assert sorted(tmp_path.rglob("*")) == before


def test_of_two_that_save_to_one_place_the_first_stays(tmp_path, monkeypatch):
    model, params = parameters(SAVED["llama"])
    write = weights._write

    def overtaken(path, arrays, kinds):
        monkeypatch.setattr(weights, "_write", write)
        interop.save(tmp_path / "saved", model, params)
        write(path, arrays, kinds)

    monkeypatch.setattr(weights, "_write", overtaken)
    with refused("saved' is in use: name a new or empty folder"):
        interop.save(tmp_path / "saved", model, params)
    same(params, interop.load(tmp_path / "saved")[1])
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_nothing_is_left_where_the_tokenizer_fails(tmp_path):
    class Broken:
        begin = end = pad = None

        def save(self, folder):
            raise ValueError("no")

    model, params = parameters(SAVED["llama"])
    with refused("no"):
        interop.save(tmp_path / "saved", model, params, Broken())
    assert list(tmp_path.iterdir()) == []


def test_shards_come_back_as_they_were(tmp_path):
    model, params = parameters(SAVED["bert"])
    interop.save(tmp_path / "saved", model, params, shard=5000)
    assert len(list((tmp_path / "saved").glob("model-*-of-*.safetensors"))) > 3
    assert not (tmp_path / "saved" / weights.SINGLE).exists()
    same(params, interop.load(tmp_path / "saved")[1])


def test_saving_what_was_loaded_writes_the_same_tensors(tmp_path):
    folder = folders.write(tmp_path / "theirs", "roberta-pad")
    tokenizer = type("Pad", (), {"begin": 0, "end": 2, "pad": 3, "save": lambda self, folder: None})()
    interop.save(tmp_path / "ours", *interop.load(folder)[:2], tokenizer, family="roberta")
    theirs, ours = load_file(folder / weights.SINGLE), load_file(tmp_path / "ours" / weights.SINGLE)
    theirs["lm_head.bias"] = theirs["lm_head.decoder.bias"]  # the other name of it
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)


def test_the_tokenizers_ids_and_files_go_along(tmp_path):
    model, params = parameters(decoder(dataclasses.replace(LLAMA)))
    tokenizer = text.Bytes()
    interop.save(tmp_path / "saved", model, params, tokenizer)
    content = json.loads((tmp_path / "saved/config.json").read_text())
    assert content["eos_token_id"] == tokenizer.end
    assert content["bos_token_id"] is None
    assert interop.load(tmp_path / "saved")[2].fingerprint == tokenizer.fingerprint
    interop.save(tmp_path / "alone", model, params)
    content = json.loads((tmp_path / "alone/config.json").read_text())
    assert (content["eos_token_id"], content["bos_token_id"]) == (None, None)


def test_a_roberta_is_not_saved_with_a_tokenizer_that_pads_otherwise(tmp_path):
    model, params = parameters(SAVED["roberta"])
    tokenizer = type("Pad", (), {"begin": 0, "end": 2, "pad": 5, "save": lambda self, folder: None})()
    with refused("offset=2 makes 1 the id of padding, but the tokenizer's is 5: save the model with its own"):
        interop.save(tmp_path / "saved", model, params, tokenizer)
    assert list(tmp_path.iterdir()) == []
