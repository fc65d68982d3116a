"""A folder is loaded whole, or refused in one line that names what is wrong with it."""

import importlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop import folders
from transformer import interop, text
from transformer.interop import weights
from transformer.interop.weights import INDEX, SINGLE

subject = importlib.import_module("transformer.interop.load")


def refused(words: str):
    return pytest.raises(ValueError, match=words)


def change(folder, **tensors: np.ndarray | None) -> None:
    """Replace, add or, with None, take away tensors."""
    content = load_file(folder / SINGLE) | {name.replace("__", "."): array for name, array in tensors.items()}
    save_file({name: array for name, array in content.items() if array is not None}, folder / SINGLE)


def convert(folder, dtype) -> None:
    save_file({name: array.astype(dtype) for name, array in load_file(folder / SINGLE).items()}, folder / SINGLE)


def numbers(folder) -> np.ndarray:
    _, params, _ = interop.load(folder)
    return np.asarray(params["embedding"]["table"])


def test_a_folder_is_told_by_its_config(llama, tmp_path):
    assert interop.is_folder(llama)
    assert interop.is_folder(str(llama))
    assert not interop.is_folder(tmp_path)
    assert not interop.is_folder(llama / "config.json")
    assert interop.resolve(str(llama)) == llama


def test_the_parameters_are_those_that_the_model_makes(llama):
    model, params, tokenizer = interop.load(llama)
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), made
    )
    assert tokenizer is None
    np.testing.assert_array_equal(params["embedding"]["table"], load_file(llama / SINGLE)["model.embed_tokens.weight"])


@pytest.mark.parametrize("piece", [1, 10**6])
def test_tensors_read_piece_by_piece_are_whole(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(weights, "PIECE", piece)
    folder = folders.write(tmp_path / "model", "roberta-pad")
    stored = load_file(folder / SINGLE)
    _, params, _ = interop.load(folder)
    positions = stored["roberta.embeddings.position_embeddings.weight"]
    np.testing.assert_array_equal(params["encoder"]["positions"]["table"], positions)
    turned = stored["roberta.encoder.layer.1.intermediate.dense.weight"].T
    np.testing.assert_array_equal(params["encoder"]["blocks"]["mlp"]["up"]["kernel"][1], turned)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("param_dtype", [None, "float32", "bfloat16", "float16"])
def test_numbers_keep_their_type_or_take_the_one_asked_for(llama, stored, param_dtype):
    before = numbers(llama)
    convert(llama, jnp.dtype(stored))
    model, params, _ = interop.load(llama, dtype="bfloat16", param_dtype=param_dtype)
    expected = before.astype(jnp.dtype(stored)).astype(jnp.dtype(param_dtype or stored))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {param_dtype or stored}
    assert (model.config.dtype, model.config.param_dtype) == ("bfloat16", param_dtype or stored)
    np.testing.assert_array_equal(params["embedding"]["table"], expected)


def test_stored_types_that_differ_have_a_type_that_holds_both(llama):
    norm = load_file(llama / SINGLE)["model.norm.weight"].astype(ml_dtypes.bfloat16)
    convert(llama, np.float16)
    change(llama, model__norm__weight=norm)
    assert interop.load(llama)[0].config.param_dtype == "float32"


@pytest.mark.parametrize("name", ["dtype", "param_dtype"])
def test_another_type_is_refused(llama, name):
    with refused(f"^{name}='float64': choose one of float32, bfloat16, float16"):
        interop.load(llama, **{name: "float64"})


def test_each_parameter_is_placed_once_as_soon_as_it_is_whole(llama):
    placed = []

    def place(array):
        assert isinstance(array, np.ndarray)
        assert array.ctypes.data % subject.ALIGNMENT == 0
        placed.append(array)
        return len(placed)

    _, params, _ = interop.load(llama, place=place)
    assert sorted(jax.tree.leaves(params)) == list(range(1, len(placed) + 1))
    assert sum(array.size for array in placed) == sum(array.size for array in load_file(llama / SINGLE).values())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have a memory of their own")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_takes_the_arrays_without_copying_them(llama, dtype, monkeypatch):
    made, aligned = [], subject._aligned
    monkeypatch.setattr(subject, "_aligned", lambda *arguments: made.append(aligned(*arguments)) or made[-1])
    _, params, _ = interop.load(llama, param_dtype=dtype)
    places = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)}
    assert places == {array.ctypes.data for array in made}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (dict(model__norm__weight=None), r"the tensor 'model\.norm\.weight' is missing"),
        (dict(model__layers__1__mlp__up_proj__weight=None), r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        (dict(model__extra=np.zeros(3, np.float32)), r"model\.extra is left over"),
        (dict(model__layers__2__mlp__up_proj__weight=np.zeros((40, 24), np.float32)), r"layers\.2\..* is left over"),
        (dict(model__norm__weight=np.zeros(23, np.float32)), r"model\.norm\.weight has shape \(23,\); .* \(24,\)"),
        (dict(model__norm__weight=np.zeros((), np.float32)), r"has shape \(\); config\.json asks for \(24,\)"),
        (dict(model__norm__weight=np.zeros(0, np.float32)), r"has shape \(0,\); config\.json asks for \(24,\)"),
        (dict(model__norm__weight=np.zeros((24, 1), np.float32)), r"has shape \(24, 1\)"),
        (dict(model__norm__weight=np.zeros(24, np.float64)), "is none of float32, float16 and bfloat16"),
        (dict(model__norm__weight=np.zeros(24, np.int32)), "is none of float32, float16 and bfloat16"),
    ],
)
def test_the_tensor_that_does_not_fit_is_named(llama, tensors, words):
    change(llama, **tensors)
    with refused(words) as error:
        interop.load(llama)
    assert "\n" not in str(error.value)
    assert str(llama) in str(error.value)


def test_what_holds_nothing_to_load_is_left_alone(llama):
    change(llama, model__layers__0__self_attn__rotary_emb__inv_freq=np.zeros(5, np.float32))
    interop.load(llama)


def test_a_copy_is_compared_and_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PIECE", 100)
    folder = folders.write(tmp_path / "model", "llama-tied")
    table = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    change(folder, lm_head__weight=table)
    np.testing.assert_array_equal(numbers(folder), table)
    change(folder, model__embed_tokens__weight=np.round(table), lm_head__weight=np.round(table).astype(np.float16))
    np.testing.assert_array_equal(numbers(folder), np.round(table))
    change(folder, model__embed_tokens__weight=table)
    for other in (table + (np.arange(60) == 59)[:, None].astype(np.float32), table.astype(np.float16), table[1:]):
        change(folder, lm_head__weight=other)
        with refused(r"lm_head\.weight differs from model\.embed_tokens\.weight, but config\.json says"):
            interop.load(folder)
    change(folder, lm_head__weight=np.zeros(table.shape, np.int64))
    with refused(r"lm_head\.weight is none of float32"):
        interop.load(folder)


@pytest.mark.parametrize("shape", [(), (0,), (60, 24)])
def test_a_t5_has_a_read_out_of_its_own_where_it_differs(tmp_path, shape):
    folder = folders.write(tmp_path / "model", "t5")
    change(folder, lm_head__weight=np.ones(shape, np.float32))
    if shape == (60, 24):
        assert not interop.load(folder)[0].config.readout.tied
    else:
        with refused(r"lm_head\.weight has shape"):
            interop.load(folder)


def test_names_of_a_bare_body_and_older_names_are_understood(tmp_path):
    folder = folders.write(tmp_path / "model", "bert-pooler")
    stored, before = load_file(folder / SINGLE), numbers(folder)
    older = {
        name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): array
        for name, array in stored.items()
    }
    save_file(older, folder / SINGLE)
    np.testing.assert_array_equal(numbers(folder), before)
    change(folder, embeddings__LayerNorm__weight=stored["bert.embeddings.LayerNorm.weight"])
    with refused(
        r"embeddings\.LayerNorm\.(weight|gamma) and embeddings\.LayerNorm\.(weight|gamma) are the same tensor"
    ):
        interop.load(folder)


def test_a_bias_of_either_name_will_do(tmp_path):
    folder = folders.write(tmp_path / "model", "bert-untied")
    bias = load_file(folder / SINGLE)["cls.predictions.decoder.bias"]
    change(folder, cls__predictions__decoder__bias=None, cls__predictions__bias=bias)
    np.testing.assert_array_equal(interop.load(folder)[1]["readout"]["bias"], bias)


def test_a_folder_without_weights_is_told_from_a_folder_that_is_not_there(llama, tmp_path):
    (llama / SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        interop.load(llama)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        interop.load(tmp_path / "elsewhere")
    with refused("is a file: name the folder"):
        interop.load(llama / "config.json")
    with refused(r"holds no config\.json"):
        interop.load(tmp_path)


def test_a_folder_of_links_is_loaded(llama, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for path in llama.iterdir():
        (links / path.name).symlink_to(path)
    np.testing.assert_array_equal(numbers(links), numbers(llama))


def test_a_folder_in_shards_is_the_same_model(llama, tmp_path):
    content = load_file(llama / SINGLE)
    before = numbers(llama)
    names = sorted(content)
    (llama / SINGLE).unlink()
    for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: content[name] for name in part}, llama / file)
    where = dict.fromkeys(names[::2], "a.safetensors") | dict.fromkeys(names[1::2], "b.safetensors")
    (llama / INDEX).write_text(json.dumps({"weight_map": where}))
    np.testing.assert_array_equal(numbers(llama), before)


def test_a_tokenizer_beside_the_weights_comes_with_them(llama):
    trained = text.BPE.train(["the mole dug a hole"], 260)
    trained.save(llama)
    assert interop.load(llama)[2].fingerprint == trained.fingerprint
    (llama / "tokenizer.json").write_text("{")
    with refused(r"tokenizer\.json"):
        interop.load(llama)
