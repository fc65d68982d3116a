import types

import pytest

from experiments import measures
from transformer import data

LOSS = {"loss": 1.23456, "perplexity": 3.4368, "tokens": 9.0}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "loss 1.2346 nats per token, perplexity 3.44"),
        ({"bits_per_byte": 0.5}, "0.5000 bits per byte, loss 1.2346 nats per token, perplexity 3.44"),
        ({"accuracy": 0.39311}, "loss 1.2346 nats per token, perplexity 3.44, accuracy 39.31%"),
    ],
)
def test_what_was_measured_is_said_in_a_line(more, said):
    assert measures.spoken(LOSS | more) == said


def test_text_is_counted_in_documents_and_pairs_in_pairs_with_those_that_did_not_fit():
    sides = {"train": data.Counts(2, 1000, 300, 990), "validation": data.Counts(1, 1, 1, 1)}
    nothing = dict.fromkeys(("train", "validation", "tokenizer", "length", "segments", "objective", "recipe"))
    assert measures.amount(data.Corpus(**nothing, counts=sides)) == "2 documents, 1,000 bytes, 300 tokens"
    plain = {"pairs": 1234, "left_out": 0, "cut": 0, "source_tokens": 5000, "target_tokens": 6000}
    for unfit, said in (
        ({}, "1,234 pairs, 5,000 source and 6,000 target tokens"),
        ({"left_out": 7}, "1,234 pairs (7 left out), 5,000 source and 6,000 target tokens"),
        ({"cut": 8, "left_out": 7}, "1,234 pairs (7 left out, 8 cut), 5,000 source and 6,000 target tokens"),
    ):
        assert measures.amount(types.SimpleNamespace(counts={"train": plain | unfit})) == said
