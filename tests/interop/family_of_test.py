"""Which family has a model of a config of ours, and what is said where none has."""

import pytest

from tests.interop.configs import BERT, GPT2, LLAMA, MARIAN, ROBERTA, T5, both, changed, decoder, encoder, parameters
from transformer import interop, models
from transformer.interop.save import family_of, period
from transformer.models import Attention, Position, Readout
from transformer.models.config import Scaling


def refused(words: str):
    return pytest.raises(ValueError, match=words)


REFUSED = {  # what of each config no family has
    "alibi": (decoder(changed(LLAMA, "position", Position("alibi"))), r"llama, .*position\.kind='alibi'"),
    "no positions": (decoder(changed(LLAMA, "position", Position("none"))), r"position\.kind='none'"),
    "attention alone": (decoder(changed(LLAMA, "mlp", None)), r"decoder\.mlp=None"),
    "a norm without bias": (decoder(changed(GPT2, "norm.bias", False)), r"norm\.bias=False"),
    "norms before and after": (decoder(changed(LLAMA, "norm_placement", "both")), "norm_placement"),
    "ntk": (
        decoder(changed(LLAMA, "position", Position(scaling=Scaling("ntk", 2.0)))), r"position\.scaling\.kind='ntk'",
    ),
    "a soft cap of scores": (decoder(changed(LLAMA, "attention.softcap", 5.0)), r"attention\.softcap=5\.0"),
    "another scale": (decoder(changed(LLAMA, "attention.scale", 0.3)), r"attention\.scale=0\.3"),
    "no scale": (decoder(changed(LLAMA, "attention.scale", 0.0)), r"attention\.scale=0\.0"),
    "windows of several widths": (decoder(changed(LLAMA, "attention.windows", (4, 8))), r"windows=\(4, 8\)"),
    "a decoder with token types": (decoder(LLAMA, token_types=2), "token_types=2"),
    "an encoder without token types": (encoder(BERT), "token_types=0"),
    "scaled embeddings": (decoder(GPT2, embedding_scale=True), "embedding_scale=True"),
    "a bias of the read-out": (decoder(LLAMA, readout=Readout(bias=True)), r"readout\.bias=True"),
    "heads that cannot share the width": (
        decoder(changed(GPT2, "attention", Attention(5, head_width=5))), r"gpt2, .*decoder\.attention\.head_width=5",
    ),
    "projections without a bias, as first printed": (
        both(changed(MARIAN, "attention.bias", False), MARIAN, readout=Readout(bias=True)), r"attention\.bias=False",
    ),
    "stacks that differ": (both(MARIAN, T5), r"encoder\.attention\.bias=True, .* and \d+ more"),
    "an encoder in halves": (encoder(changed(BERT, "norm_placement", "pre"), token_types=2), "norm_placement='pre'"),
    "a pooler beside a head of one token type": (
        encoder(changed(BERT, "attention.heads", 4), token_types=0, pooler=True), "token_types=0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_family_has_is_named_before_anything_is_written(tmp_path, what):
    config, words = REFUSED[what]
    model, params = parameters(config)
    with refused(rf"^no family of models has .*{words}") as error:
        interop.save(tmp_path / "new" / "saved", model, params)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_lists_the_first_of_many_differences():
    with refused(r"the nearest, \w+, has no counterpart for ([^,]+, ){2,}.* and \d+ more$"):
        family_of(models.get("tiny-both"))


def test_where_positions_begin_tells_roberta_from_bert():
    shared = dict(readout=Readout(bias=True, transform=True), token_types=2)
    assert family_of(encoder(ROBERTA, **shared)).name == "roberta"
    assert family_of(encoder(ROBERTA, pooler=True, **shared)).name == "roberta"
    assert family_of(encoder(BERT, **shared)).name == "bert"
    with refused(r"nearest, roberta, .* encoder\.position\.offset=0, which is the id of padding plus 1"):
        family_of(encoder(BERT, **shared), "roberta")


def test_a_roberta_has_its_own_activation_in_its_head():
    head = dict(token_types=1, readout=Readout(bias=True, transform=True))
    with refused(r"nearest, roberta, .* encoder\.mlp\.activation='relu' below a read-out with transform"):
        family_of(encoder(changed(ROBERTA, "mlp.activation", "relu"), **head), "roberta")


@pytest.mark.parametrize(
    ("windows", "expected"),
    [((), ()), ((0,), ()), ((0, 0), ()), ((4,), (4,)), ((4, 4), (4,)), ((4, 0, 4, 0), (4, 0)), ((4, 0, 4), (4, 0, 4))],
)
def test_the_period_of_windows(windows, expected):
    assert period(windows) == expected
