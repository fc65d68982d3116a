"""Training on what a program generates: batches, exact resume, what is left on disk, and what is refused."""

import os
import signal

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import command, generated, loading, running
from experiments.devices import Devices
from experiments.experiment import Experiment
from transformer import inspection, text
from transformer.models import Attention, ModelConfig, Stack
from transformer.training import Optimizer, Training, metrics

WORDS = ("the", "mole", "dug", "slept", ".")
TIMED = ("tokens_per_second",)


def experiment(**training):
    """A model of a few hundred parameters, in which dropout shows whether the step's key is resumed too."""
    stack = Stack(depth=1, attention=Attention(heads=2), mlp=None, dropout=0.1)
    options = {"steps": 12, "batch_size": 8, "evaluate_every": 6, "checkpoint_every": 3, "log_every": 2, "ema": 0.9}
    return Experiment(
        model=ModelConfig(vocab=5, width=8, length=6, decoder=stack),
        data=generated.data("grammar", 6),
        training=Training(**(options | training), optimizer=Optimizer(learning_rate=0.01)),
        seed=3,
    )


def batch_at(seed, step, rows):
    """The next id is one more, modulo 5; the first target of a row does not count."""
    starts = np.random.default_rng((seed, step)).integers(0, 5, (rows, 1))
    ids = ((starts + np.arange(7)) % 5).astype(np.int32)
    weights = np.ones((rows, 6), np.float32)
    weights[:, 0] = 0
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def observe(step, params):
    """What tells steps and parameters apart."""
    return {"seen": step, "largest": float(max(abs(leaf).max() for leaf in jax.tree.leaves(params)))}


def train(workdir, batches=batch_at, tokenizer=None, devices=None, **training):
    words = generated.words(WORDS) if tokenizer is None else tokenizer
    return generated.train(experiment(**training), words, batches, workdir, observe=observe, devices=devices)


def lines(workdir):
    """The metrics that do not depend on the clock."""
    return [{name: value for name, value in row.items() if name not in TIMED} for row in metrics.read(workdir)]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Each run compiles its own steps; equal ones are kept."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    configure(options)
    yield
    configure(before)


def configure(options):
    """Compilation takes up its options once, unless it is reset."""
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def recording(asked):
    """`batch_at`, which also keeps what it was asked for."""

    def batches(seed, step, rows):
        asked.append((seed, step, rows))
        return batch_at(seed, step, rows)

    return batches


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupted, and what batches it asked for."""
    workdir, asked = tmp_path_factory.mktemp("whole") / "new" / "run", []
    return workdir, train(workdir, recording(asked)), asked


def same(tree, other):
    return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), tree, other))


def test_a_run_opens_like_any_other(whole):
    workdir, trained, _ = whole
    loaded = loading.load(workdir)
    assert loaded.step == trained.step == 12
    assert same(loaded.params, trained.params)
    assert loaded.experiment == trained.experiment == experiment()
    assert loaded.tokenizer.fingerprint == trained.tokenizer.fingerprint
    assert loaded.ids("the mole slept.") == [0, 1, 3, 4]
    logits, _ = inspection.run(loaded.model, loaded.params, np.asarray([loaded.ids("the mole")]))
    assert logits.shape == (1, 2, 5)


def test_metrics_hold_the_loss_on_held_out_batches_and_what_was_observed(whole):
    rows = metrics.read(whole[0])
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [(row["step"], row["validation_seen"]) for row in rows if "validation_seen" in row] == [(6, 6), (12, 12)]
    assert rows[-1]["validation_largest"] == observe(12, whole[1].params)["largest"]
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["validation_loss"] < rows[3]["validation_loss"]
    assert rows[-1]["validation_tokens"] == generated.VALIDATION * 8 * 5  # of six targets in a row five count


def test_held_out_batches_are_none_that_training_sees(whole):
    held_out = {(3, generated.HELD_OUT + index, 8) for index in range(generated.VALIDATION)}
    assert set(whole[2]) == {(3, step, 8) for step in range(12)} | held_out | {(0, 0, generated.SAMPLE)}
    assert np.iinfo(np.int32).max < generated.HELD_OUT


def test_a_run_that_broke_off_goes_on_as_if_it_had_not(whole, tmp_path):
    def breaking(seed, step, rows):
        if step == 7:
            raise RuntimeError("broken off")
        return batch_at(seed, step, rows)

    with pytest.raises(RuntimeError, match="broken off"):
        train(tmp_path, breaking)
    assert loading.load(tmp_path).step == 6
    assert same(train(tmp_path).params, whole[1].params)
    assert lines(tmp_path) == lines(whole[0])


def test_a_run_that_is_told_to_stop_saves_its_step_and_goes_on_as_if_it_had_not(whole, tmp_path):
    def stopping(seed, step, rows):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_at(seed, step, rows)

    with pytest.raises(command.Interrupted, match=r"at step 8; the same command goes on from there") as stopped:
        train(tmp_path, stopping)
    assert stopped.value.signal == signal.SIGTERM
    assert loading.load(tmp_path).step == 8
    assert same(train(tmp_path).params, whole[1].params)
    assert lines(tmp_path) == lines(whole[0])


def test_a_run_that_is_over_is_only_opened(whole):
    workdir, trained, _ = whole
    before, asked = lines(workdir), []
    again = train(workdir, recording(asked))
    assert same(again.params, trained.params) and again.step == 12
    assert lines(workdir) == before and set(range(1, 12)).isdisjoint(step for _, step, _ in asked)


def test_each_process_takes_its_own_rows():
    batches = {count: [] for count in (1, 4)}
    for count in batches:
        for index in range(count):
            one = generated.Batches(batch_at, 3, 8, 5, (index, count))
            assert one.step == 5
            batches[count].append(next(one))
            assert one.step == 6
    for name, array in batch_at(3, 5, 8).items():
        for parts in batches.values():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_the_step_may_run_under_pmap(whole, tmp_path):
    assert train(tmp_path, devices=Devices("pmap"), steps=2).step == 2
    (row,), first = lines(tmp_path), lines(whole[0])[0]
    assert row["step"] == first["step"] and row["loss"] != first["loss"]  # each device has keys of its own for dropout
    with pytest.raises(ValueError, match="parallel='vmap' cannot work"):
        train(tmp_path / "new", devices=Devices("vmap"))


def test_another_program_tokenizer_or_recipe_does_not_go_on(whole):
    workdir, *_ = whole
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    for message, change in {
        r"data\.content was \w{12}, now": {"batches": lambda seed, step, rows: batch_at(seed + 1, step, rows)},
        r"data\.tokenizer was \w{12}, now": {"tokenizer": generated.words(("a", "b", "c", "d", "e"))},
        r"holds a run of another recipe: training\.label_smoothing was 0\.0, now 0\.1": {"label_smoothing": 0.1},
        r"training\.batch_size was 8, now 16": {"batch_size": 16},
    }.items():
        with pytest.raises(ValueError, match=message):
            train(workdir, **change)
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def changed(**arrays):
    return lambda seed, step, rows: batch_at(seed, step, rows) | arrays


REFUSED = {
    r"inputs of shape \(8, 7\): make them \(8, 6\)": {"batches": changed(inputs=np.zeros((8, 7), np.int32))},
    r"weights of shape \(8,\)": {"batches": changed(weights=np.ones(8, np.float32))},
    r"targets from 0 to 5: the model has ids 0 to 4": {"batches": changed(targets=np.tile(np.arange(6), (8, 1)))},
    r"inputs from -1 to -1": {"batches": changed(inputs=np.full((8, 6), -1))},
    r"model\.vocab=5 is too small for the tokenizer's 6 entries": {"tokenizer": generated.words((*WORDS, "more"))},
}


@pytest.mark.parametrize("message", REFUSED)
def test_batches_that_do_not_fit_are_refused_and_nothing_is_left_behind(tmp_path, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "new" / "run", **REFUSED[message])
    assert not list(tmp_path.iterdir())


def test_a_directory_that_another_run_holds_is_refused(tmp_path):
    with running.locked(tmp_path), pytest.raises(ValueError, match="is in use by another run"):
        train(tmp_path)


def test_every_word_has_its_place_as_id(tmp_path):
    tokenizer = generated.words((*WORDS, "<end>"), end="<end>")
    tokenizer.save(tmp_path)
    for one in (tokenizer, text.load(tmp_path)):
        assert one.encode("the mole\n dug.").tolist() == [0, 1, 2, 4]
        assert one.decode([0, 1, 3, 5]) == "the mole slept"
        assert (one.size, one.end, one.opening) == (6, 5, 5)
        assert loading.opened(one, "mole") == [5, 1]
        with pytest.raises(ValueError, match="cannot spell"):
            one.encode("the vole")
    assert generated.words(WORDS).opening is None


@pytest.mark.parametrize(
    ("vocabulary", "end", "message"),
    [
        (("a", "b", "a"), None, "'a' twice"),
        (("a", "don't"), None, '"don\'t", which is cut in two'),
        (("a", "b c"), None, "'b c', which is cut in two"),
        (("a", ""), None, "'', which is cut in two"),
        (("a", "b"), "<end>", "the end token '<end>' is not in the vocabulary"),
    ],
)
def test_a_vocabulary_that_text_could_not_spell_is_refused(vocabulary, end, message):
    with pytest.raises(ValueError, match=message):
        generated.words(vocabulary, end)


def test_other_scripts_name_the_program_that_generates(scripts, whole, tmp_path):
    workdir, *_ = whole
    (tmp_path / "recipe.py").write_text(
        "from experiments import generated\nfrom experiments.experiment import Experiment\n"
        "from transformer.models import ModelConfig, Stack\n\ndef get_config():\n"
        "    model = ModelConfig(vocab=5, width=8, decoder=Stack())\n"
        '    return Experiment(model=model, data=generated.data("grammar", 6)).mutable()\n'
    )
    training, evaluation, writing = scripts(
        [
            ["experiments.train", f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'run'}"],
            ["experiments.evaluate", f"--workdir={workdir}"],
            ["experiments.generate", f"--workdir={workdir}", "--prompt=the mole", "--length=3", "--greedy"],
        ]
    )
    for process in (training, evaluation):
        assert process.returncode == 2
        assert process.stderr == (
            "error: data.path='generated:grammar' is no text: python -m experiments.grammar generates it, trains on it "
            "and measures\n"
        )
    assert not (tmp_path / "run").exists()
    assert writing.returncode == 0, writing.stderr
    assert writing.stdout.startswith("the mole") and len(writing.stdout.replace(".", " .").split()) == 5
