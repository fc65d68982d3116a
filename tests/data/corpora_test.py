"""One way in and one way back for text and for pairs, whatever lies in the folder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from transformer import data, text

TEXT = "all that is and all that is not " * 60


@pytest.fixture
def configs(tmp_path):
    """By the type of what they make."""
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "pairs.tsv").write_text("".join(f"{number}\tno {number}\n" for number in range(40)))
    tokenizer = data.Tokenizer(vocab=270)
    stream = data.Data(path=str(tmp_path / "text.txt"), length=8, split="tail", tokenizer=tokenizer)
    pairs = data.Data(
        path=str(tmp_path / "pairs.tsv"), length=9, objective=data.Objective("pairs"), tokenizer=tokenizer
    )
    return {data.Corpus: stream, data.Bitext: pairs}


@pytest.mark.parametrize("kind", [data.Corpus, data.Bitext])
def test_the_objective_decides_what_is_made_and_the_folder_what_is_loaded(configs, tmp_path, kind):
    made = data.prepare(configs[kind], tmp_path / "data")
    for path in (tmp_path / "text.txt", tmp_path / "pairs.tsv"):
        path.unlink()  # no source is needed again
    loaded = data.load(str(tmp_path / "data"))
    assert type(made) is type(loaded) is kind
    assert loaded.recipe == made.recipe and loaded.fingerprint == made.fingerprint
    assert loaded.tokenizer.fingerprint == made.tokenizer.fingerprint
    first, second = (next(data.batches(corpus, batch_size=2, seed=0)) for corpus in (made, loaded))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


@pytest.mark.parametrize("kind", ["prefix", "masked", "spans"])
def test_settings_of_an_objective_are_loaded(configs, tmp_path, kind):
    changes = {"prefix": {}, "masked": {"rate": 0.3, "whole_words": True}, "spans": {"rate": 0.25, "span": 2.0}}
    objective = data.Objective(kind, **changes[kind])
    wanted = dataclasses.replace(configs[data.Corpus], objective=objective, segments=True)
    wanted = dataclasses.replace(wanted, tokenizer=data.Tokenizer(vocab=300))
    data.prepare(wanted, tmp_path / "data")
    loaded = data.load(tmp_path / "data")
    assert (loaded.objective, loaded.length, loaded.segments) == (objective, 8, True)


@pytest.mark.parametrize("kind", [data.Corpus, data.Bitext])
def test_a_tokenizer_at_hand_is_used(configs, tmp_path, kind):
    made = data.prepare(configs[kind], tmp_path / "data", text.Bytes())
    assert made.tokenizer.kind == data.load(tmp_path / "data").tokenizer.kind == "bytes"


def test_refuses_a_folder_without_a_whole_corpus(configs, tmp_path):
    for folder in (tmp_path / "missing", tmp_path, tmp_path / "text.txt"):
        with pytest.raises(ValueError, match="holds no intact corpus: train there again, which mends it"):
            data.load(folder)
    data.prepare(configs[data.Bitext], tmp_path / "data")
    record = tmp_path / "data" / "corpus.json"
    record.write_text(record.read_text().replace('"pairs": ', '"pairs": 1', 1))
    with pytest.raises(ValueError, match="holds no intact corpus"):
        data.load(tmp_path / "data")
