import dataclasses
import functools
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import loading, writing
from experiments.experiment import SHAPES, Experiment
from transformer import decoding, models, text
from transformer.data import Data, Objective, Tokenizer
from transformer.models import Attention, Init, ModelConfig, Position, Stack


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


def test_what_is_cut_keeps_the_opening_token_and_is_counted(made):
    trained = loading.load(made.workdir)
    stack = dataclasses.replace(trained.model.config.decoder, position=Position("learned"))
    config = dataclasses.replace(trained.model.config, decoder=stack)
    trained = dataclasses.replace(trained, model=models.Transformer(config))
    words, opening = "on and on " * 10, trained.tokenizer.end
    ids = trained.tokenizer.encode(words).tolist()
    assert writing.prompt_ids(trained, words, 21) == [opening, *ids[-11:]]  # 20 and these 12 fill 32 places
    assert writing.cut(trained, words, 21) == len(ids) - 11
    assert (writing.prompt_ids(trained, "", 32), writing.cut(trained, "", 32)) == ([opening], 0)
    with pytest.raises(ValueError, match="length=32 leaves no room for a prompt"):
        writing.prompt_ids(trained, words, 32)


def test_prompts_are_checked_before_training(made, lettered):
    trained, letters = loading.load(made.workdir), loading.load(lettered.workdir)
    writing.check_prompts(("", "É"), trained.tokenizer, "causal")
    writing.check_prompts(("on",), letters.tokenizer, "causal")
    for prompt, said in (("É", "'É'"), ("", "prompt is empty")):
        with pytest.raises(ValueError, match=said):
            writing.check_prompts(("on", prompt), letters.tokenizer, "causal")


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


def test_parameters_that_are_not_finite_write_nothing(lettered, monkeypatch):
    trained = loading.load(lettered.workdir)
    first, *others = jax.tree.leaves(trained.params)
    wrong = jax.tree.unflatten(jax.tree.structure(trained.params), [first.at[(-1,) * first.ndim].set(jnp.nan), *others])
    trained = dataclasses.replace(trained, params=wrong)
    monkeypatch.setattr(decoding, "stream", lambda *_, **options: pytest.fail("it writes"))
    with pytest.raises(ValueError, match="step 3 has parameters that are not finite"):
        writing.write(trained, "one", 9, decoding.Greedy(), jax.random.key(0))
    with pytest.raises(ValueError, match="step 3 has parameters that are not finite"):
        writing.speculate(loading.load(lettered.workdir), trained, "one", 9, 4, decoding.Greedy(), jax.random.key(0))
    with pytest.raises(ValueError, match="the model gives logits that are not finite"):
        writing._best(trained.tokenizer, jnp.full(15, jnp.nan), 3)


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


@functools.cache
def run(kind):
    """What an objective would leave: random parameters, the same for all, and a tokenizer that spells two names."""
    stack = Stack(depth=2, mlp=None, attention=Attention(heads=2))  # one would not tell how earlier tokens were read
    stacks = {name: stack for name, wanted in zip(("encoder", "decoder"), SHAPES[kind], strict=False) if wanted}
    experiment = Experiment(
        model=ModelConfig(vocab=270, width=8, length=32, **stacks, init=Init(scale=1.0, embedding=1.0, output=1.0)),
        data=Data(objective=Objective(kind), length=16, tokenizer=Tokenizer(vocab=270)),
    )
    model, ids = models.Transformer(experiment.model), jnp.zeros((1, 1), jnp.int32)
    read = {"source": ids} if len(stacks) == 2 else {}
    params = jax.jit(model.init)(jax.random.key(5), ids, **read)["params"]
    tokenizer = text.BPE.train(["one two"], 262, special=("[MASK]", "<extra_id_0>"))
    return loading.of_run(experiment, params, tokenizer, 3)


def printed(trained, prompts):
    writing.report(trained, prompts, Console(file=(out := io.StringIO()), soft_wrap=True))
    return out.getvalue()


def probabilities(trained, ids, place, **seen):
    """Of the tokenizer's ids at a place, in float64, by the plain forward pass."""
    logits = jax.jit(trained.model.apply)({"params": trained.params}, jnp.asarray([ids]), **seen)[0, place]
    powers = np.exp(np.asarray(logits, np.float64)[: trained.tokenizer.size])
    return powers / powers.sum()


def test_what_may_fill_each_mask_is_the_likeliest_there():
    trained = run("masked")
    prompt, tokenizer = "one[MASK]two[MASK]", trained.tokenizer
    ids = [tokenizer.end, *tokenizer.encode(prompt, special=True)]
    places = [place for place, one in enumerate(ids) if one == tokenizer.mask]
    first, second = writing.fillers(trained, prompt, 4)
    for rows, place in ((first, places[0]), (second, places[1])):
        expected = probabilities(trained, ids, place)
        order = np.argsort(-expected)[:4]
        np.testing.assert_allclose([row[1] for row in rows], expected[order], rtol=1e-5)  # float32 logits
        assert [row[0] for row in rows] == [tokenizer.decode([token], keep_end=True) for token in order]
    assert first != second
    out = printed(trained, (prompt, "[MASK]"))
    assert out.count("│") == 3 * 5 * 3 and f"in mask 2 of {prompt!r}" in out and "in mask 1 of '[MASK]'" in out


def test_a_text_without_a_mask_is_refused_also_before_training():
    trained = run("masked")
    with pytest.raises(ValueError, match=r"prompt 'one' has no \[MASK\]: an encoder alone fills those in"):
        writing.fillers(trained, "one")
    writing.check_prompts(("one[MASK]",), trained.tokenizer, "masked")
    with pytest.raises(ValueError, match=r"prompt 'two' has no \[MASK\]"):
        writing.check_prompts(("one[MASK]", "two"), trained.tokenizer, "masked")
    bare = dataclasses.replace(trained, tokenizer=text.Bytes())
    with pytest.raises(ValueError, match="step 3 has an encoder alone and a tokenizer without a mask"):
        writing.fillers(bare, "one[MASK]")


def test_a_prompt_of_a_prefix_model_sees_itself_in_both_directions():
    trained, encoder = run("prefix"), run("masked")
    prompt, tokenizer = "one two", trained.tokenizer
    ids = [tokenizer.end, *tokenizer.encode(prompt)]
    # An encoder with the same weights is a decoder that sees all.
    weights = {"embedding": trained.params["embedding"], "encoder": trained.params["decoder"]}
    expected = probabilities(dataclasses.replace(encoder, params=weights), ids, -1)
    rows = writing.likeliest(trained, prompt, 5)
    np.testing.assert_allclose([row[1] for row in rows], np.sort(expected)[:-6:-1], rtol=1e-5)
    causal = dataclasses.replace(trained, experiment=run("causal").experiment)
    assert abs(writing.likeliest(causal, prompt, 1)[0][1] - rows[0][1]) > 1e-3

    forward, seen = jax.jit(trained.model.apply), np.arange(16)[None] < len(ids)
    for _ in range(6):
        row = np.zeros((1, 16), np.int32)
        row[0, : len(ids)] = ids
        logits = forward({"params": trained.params}, row, prefix=seen)[0, len(ids) - 1]
        ids.append(int(np.argmax(logits)))
    written = "".join(writing.write(trained, prompt, 6, decoding.Greedy(), jax.random.key(0)))
    spelt = [one for one in ids[-6:] if one < tokenizer.size]
    assert written == tokenizer.decode(spelt) and written


@pytest.mark.parametrize("kind", ["pairs", "spans"])
def test_an_encoder_decoder_reads_a_prompt_with_its_end_and_writes_from_its_start(kind):
    trained, prompt = run(kind), "one<extra_id_0>two"
    tokenizer = trained.tokenizer
    source = [*tokenizer.encode(prompt, special=kind == "spans"), tokenizer.end]
    assert (tokenizer.sentinels[0] in source) == (kind == "spans")
    expected = probabilities(trained, [tokenizer.end], 0, source=jnp.asarray([source]))
    np.testing.assert_allclose(writing.likeliest(trained, prompt, 1)[0][1], expected.max(), rtol=1e-5)
    if kind == "pairs":
        found = decoding.generate(
            trained.model, trained.params, [[tokenizer.end]], length=80, source=[source], stop=tokenizer.end
        )[0]
        answer = tokenizer.decode(found[found < tokenizer.size])
        assert printed(trained, ("one<extra_id_0>two",)) == f"\n1. {prompt}\n   {answer}\n"
