import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import loading, writing
from transformer import decoding


def test_prompts_begin_like_documents_and_lose_their_beginning_only_to_a_learned_table(made, lettered):
    trained, letters = loading.load(made.workdir), loading.load(lettered.workdir)
    words = "on and on " * 10
    assert writing.prompt_ids(trained, "", 5) == [trained.tokenizer.end]
    assert writing.prompt_ids(trained, words, 30) == [trained.tokenizer.end, *trained.tokenizer.encode(words)]
    ids = letters.tokenizer.encode(words).tolist()
    assert writing.prompt_ids(letters, "on", 5) == ids[:2]
    assert writing.prompt_ids(letters, words, 30) == ids[-3:]  # three, and all but the last of thirty, fill 32 places
    assert writing.prompt_ids(letters, words, 32) == ids[-1:]
    with pytest.raises(ValueError, match="length=33 leaves no room for a prompt: the model has 32 positions"):
        writing.prompt_ids(letters, words, 33)
    with pytest.raises(ValueError, match="prompt is empty"):
        writing.prompt_ids(letters, "", 5)


def test_prompts_are_checked_before_training(made, lettered):
    trained, letters = loading.load(made.workdir), loading.load(lettered.workdir)
    writing.check_prompts(("", "É"), trained.tokenizer)
    writing.check_prompts(("on",), letters.tokenizer)
    for prompt, said in (("É", "'É'"), ("", "prompt is empty")):
        with pytest.raises(ValueError, match=said):
            writing.check_prompts(("on", prompt), letters.tokenizer)


def test_what_is_written_is_what_each_likeliest_token_spells(lettered):
    trained = loading.load(lettered.workdir)
    ids = writing.prompt_ids(trained, "one", 12)
    forward = jax.jit(trained.model.apply)
    for _ in range(12):
        row = jnp.zeros((1, 32), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
        ids.append(int(np.argmax(forward({"params": trained.params}, row)[0, len(ids) - 1])))
    pieces = list(writing.write(trained, "one", 12, decoding.Greedy(), jax.random.key(0)))
    assert "".join(pieces) == trained.tokenizer.decode(np.asarray(ids[3:]))


@dataclasses.dataclass(frozen=True)
class Always:
    """Chooses one token whatever the logits."""

    token: int
    random = False

    def __call__(self, logits, key=None):
        return jnp.full(logits.shape[:-1], self.token, jnp.int32)


def test_writing_ends_at_the_end_token_and_leaves_out_what_no_token_spells(made):
    trained = loading.load(made.workdir)
    on = int(trained.tokenizer.encode("n")[0])
    written = {token: "".join(writing.write(trained, "o", 9, Always(token), jax.random.key(0))) for token in (on, 290)}
    assert written == {on: "n" * 9, 290: ""}
    pieces = list(writing.write(trained, "o", 9, Always(trained.tokenizer.end), jax.random.key(0)))
    assert "".join(pieces) == "" and len(pieces) == 2  # one token and the flush, not nine


def test_the_likeliest_tokens_are_those_of_the_plain_forward_pass(made):
    trained = loading.load(made.workdir)
    ids = [trained.tokenizer.end, *trained.tokenizer.encode("one two")]
    logits = np.asarray(trained.model.apply({"params": trained.params}, jnp.asarray([ids]))[0, -1], np.float64)[:280]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-probabilities)[:5]
    rows = writing.likeliest(trained, "one two", 5)
    np.testing.assert_allclose([row[1] for row in rows], probabilities[order], rtol=1e-5)
    assert [row[0] for row in rows] == [trained.tokenizer.decode([token], keep_end=True) for token in order]


def test_a_report_continues_each_prompt_and_lists_tokens_after_the_last(lettered):
    trained, out = loading.load(lettered.workdir), io.StringIO()
    writing.report(trained, ("one", "on"), Console(file=out, soft_wrap=True))
    printed = out.getvalue()
    continued = re.findall(r"^\d\. (.*)$", printed, re.MULTILINE)
    assert len(continued) == 2 and continued[0].startswith("one") and continued[1].startswith("on")
    assert [len(line) for line in continued] == [3 + 16, 2 + 16]  # half of a learned table, in letters
    assert "likeliest next tokens after 'on'" in printed and printed.count("│") == 3 * 10
    writing.report(trained, (), Console(file=(nothing := io.StringIO())))
    assert nothing.getvalue() == ""
