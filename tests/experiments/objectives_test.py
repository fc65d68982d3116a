"""Every objective by the scripts: trained a little, resumed, measured, and used for what it learnt."""

from __future__ import annotations

import json
import shutil

import pytest

from experiments import loading, scores, translation
from experiments.experiment import Experiment
from transformer import data, training
from transformer.models import ModelConfig, Stack
from transformer.training import metrics

RECIPE = """
from experiments.experiment import Experiment
from transformer.data import Data, Objective, Pairs, Tokenizer
from transformer.models import Attention, Mlp, ModelConfig, Stack
from transformer.training import Optimizer, Training

STACK = Stack(depth=1, attention=Attention(heads=2), mlp=Mlp(width=8))
TEXT = dict(path={text!r}, length=16, validation=0.2, split="tail", tokenizer=Tokenizer(vocab=290))
PAIRS = dict(path={pairs!r}, length=24, validation=0.2, tokenizer=Tokenizer(vocab=290))


def get_config(setting):
    kind = setting.rstrip("+")
    encoder, decoder = (None if kind == other else STACK for other in ("prefix", "masked"))
    where = PAIRS if kind == "pairs" else TEXT
    data = Data(objective=Objective(kind), segments=setting.endswith("+") or kind == "masked", **where)
    return Experiment(
        model=ModelConfig(vocab=290, width=8, length=32, encoder=encoder, decoder=decoder),
        data=data,
        training=Training(
            steps=4, batch_size=8, batch_tokens=256 if setting == "pairs" else 0, evaluate_every=4, checkpoint_every=2,
            log_every=2, optimizer=Optimizer(learning_rate=0.01, schedule="constant"),
        ),
        prompts={{"masked": ("one[MASK]two",), "spans": ("one<extra_id_0>two",)}}.get(kind, ("one two",)),
    ).mutable()
"""
SETTINGS = ("prefix", "masked", "spans+", "pairs", "pairs+")
SAID = {"prefix": "likeliest next tokens", "masked": "likeliest in mask 1 of 'one[MASK]two'"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """A recipe for every objective, text, and two parallel files."""
    folder = tmp_path_factory.mktemp("objectives")
    words = (tiny / "text.txt").read_text().split()
    lines = [" ".join(words[start : start + 1 + start % 7]) for start in range(0, 400, 7)]
    (folder / "train.en").write_text("".join(f"{line}\n" for line in lines))
    (folder / "train.de").write_text("".join(f"{line.upper()}\n" for line in lines))
    paths = {"text": str(tiny / "text.txt"), "pairs": f"{folder / 'train.en'},{folder / 'train.de'}"}
    (folder / "recipe.py").write_text(RECIPE.format(**paths))
    return folder


def train(folder, setting, name, *arguments):
    return ["experiments.train", f"--config={folder / 'recipe.py'}:{setting}", f"--workdir={folder / name}", *arguments]


@pytest.fixture(scope="module")
def runs(scripts, folder):
    """What training each objective said; its run is in the folder by its name."""
    short = "--config.training.steps=2"
    requests = [train(folder, setting, setting) for setting in SETTINGS]
    # Interrupted after two steps, and gone on with.
    requests += [train(folder, "pairs", "twice", *more) for more in ((short,), ())]
    processes = scripts(requests)
    for process in processes:
        assert process.returncode == 0, process.stderr
    return dict(zip(SETTINGS, processes, strict=False))


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_objective_is_trained_and_shows_what_it_learnt(runs, folder, setting):
    said = runs[setting].stdout
    assert "validation: loss " in said and ("accuracy" in said)
    assert SAID.get(setting.rstrip("+"), "\n1. ") in said
    assert "of the places in its rows hold tokens" in said
    (last,) = [row for row in metrics.read(folder / setting) if "validation_accuracy" in row]
    assert last["step"] == 4 and 0 <= last["validation_accuracy"] <= 1 and last["validation_loss"] > 0


def test_resuming_goes_on_as_if_nothing_had_been(runs, folder):
    lines = [metrics.read(folder / name)[-1] for name in ("pairs", "twice")]
    whole, twice = ({name: line[name] for name in ("step", "loss", "grad_norm", "validation_loss")} for line in lines)
    assert whole == twice


def test_pmap_on_two_devices_learns_as_jit_on_one(scripts, runs, folder):
    (process,) = scripts([train(folder, "pairs", "pmap", "--parallel=pmap")], devices=2)
    assert process.returncode == 0, process.stderr
    one, two = (metrics.read(folder / name)[-1]["loss"] for name in ("pairs", "pmap"))
    assert two == pytest.approx(one, rel=1e-5)  # float32 sums in another order


def test_measures_say_what_the_objective_is_about(scripts, runs, folder):
    start = "experiments.evaluate"
    wrong = [f"--pairs={folder / 'train.en'}", "--beams=2"]
    path = f"--pairs={folder / 'train.en'},{folder / 'train.de'}"
    asked = [
        [start, f"--workdir={folder / 'masked'}", "--json"],
        [start, f"--workdir={folder / 'masked'}"],
        [start, f"--workdir={folder / 'pairs'}", path, "--json", "--beams=2", "--average=2"],
        ["experiments.translate", f"--workdir={folder / 'pairs'}", f"--input={folder / 'train.en'}", "--beams=2",
         "--average=2", f"--output={folder / 'out.de'}", "--batch_size=7"],
        [start, f"--workdir={folder / 'pairs'}", *wrong],
        [start, f"--workdir={folder / 'masked'}", path],
        [start, f"--workdir={folder / 'pairs'}", f"--text={folder / 'train.en'}"],
        ["experiments.generate", f"--workdir={folder / 'masked'}", "--prompt=one two"],
        ["experiments.generate", f"--workdir={folder / 'prefix'}", "--prompt=one two", "--greedy", "--length=3"],
    ]  # fmt: skip
    masked, spoken, paired, translated, alone, unpaired, read, unmasked, continued = scripts(asked)
    values = json.loads(masked.stdout)
    assert set(values) >= {"accuracy", "perplexity", "unigram", "bigram"} and "bits_per_byte" not in values
    assert [line.split(":")[0] for line in spoken.stdout.splitlines()] == [
        "step 4",
        "unigram baseline",
        "bigram baseline",
    ]
    assert translated.returncode == 0, translated.stderr
    hypotheses, references = ((folder / name).read_text().splitlines() for name in ("out.de", "train.de"))
    assert json.loads(paired.stdout)["chrf"] == pytest.approx(scores.chrf(hypotheses, references).value)
    assert "names no pairs" in alone.stderr and "pairs need two: 'SOURCE,TARGET'" in alone.stderr
    assert "is no encoder with a decoder" in unpaired.stderr
    assert "is no decoder alone" in read.stderr
    assert "has no [MASK]" in unmasked.stderr
    assert continued.stdout.startswith("one two") and continued.returncode == 0
    assert {process.returncode for process in (alone, unpaired, read, unmasked)} == {2}


def test_lines_are_translated_in_order_and_refused_by_number(script, runs, folder, tmp_path):
    trained = loading.load(folder / "pairs")
    texts = ["one two three", "the", "of a text that goes on"]
    rows = translation.sources_of(trained, [(f"line {n}", text) for n, text in enumerate(texts)])
    search = translation.Search(beams=2, count=2, batch_size=2)
    together = translation.translate(trained, rows, search)
    for row, alone in zip(rows, together, strict=True):
        (single,) = translation.translate(trained, [row], search)
        assert [output.text for output in single] == [output.text for output in alone]
        assert [output.score for output in single] == pytest.approx([output.score for output in alone], rel=1e-4)
        assert [output.score for output in alone] == sorted((output.score for output in alone), reverse=True)
    long = "one two three of a text that goes on with words " * 3
    for content, message in (
        ("  ", "line 7 is empty"),
        (long, r"line 7 has \d+ tokens with its end, and .* at most 24"),
    ):
        with pytest.raises(ValueError, match=message):
            translation.sources_of(trained, [("line 7", content)])
    (cut,) = translation.sources_of(trained, [("line 7", long)], truncate=True)
    assert len(cut) == 24 and cut[-1] == trained.tokenizer.end
    (tmp_path / "in.txt").write_text("one\n\ntwo\n")
    process = script("experiments.translate", f"--workdir={folder / 'pairs'}", f"--input={tmp_path / 'in.txt'}")
    assert process.returncode == 2 and "in.txt, line 2 is empty" in process.stderr


def test_what_a_run_reads_and_begins_with_follows_its_objective(runs, folder):
    trained = {setting: loading.load(folder / setting) for setting in ("prefix", "masked", "spans+", "pairs")}
    end = trained["pairs"].tokenizer.end
    plain = trained["pairs"].tokenizer.encode("one").tolist()
    assert trained["pairs"].ids("one") == [*plain, end] and trained["pairs"].start == end
    assert trained["prefix"].prefix and not trained["masked"].prefix
    mask, (sentinel, *_) = trained["masked"].tokenizer.mask, trained["spans+"].tokenizer.sentinels
    assert trained["masked"].ids("[MASK]") == [trained["masked"].tokenizer.end, mask]
    assert trained["spans+"].ids("<extra_id_0>") == [sentinel, trained["spans+"].tokenizer.end]
    mean = loading.load(folder / "pairs", average=2)
    assert mean.origin == "step 4, mean of 2 checkpoints"


def test_other_files_of_pairs_and_unequal_ones_are_refused(scripts, runs, folder, tmp_path):
    shutil.copytree(folder / "pairs", tmp_path / "run")
    (tmp_path / "short.de").write_text("EINS\n")
    unequal = f"--config.data.path={folder / 'train.en'},{tmp_path / 'short.de'}"
    unprepared = "--config.data.path=tfds:wmt14_translate/de-en"
    new, old = (
        train(folder, "pairs", tmp_path / name, argument) for name, argument in (("new", unequal), ("run", unequal))
    )
    processes = scripts([new, old, train(folder, "pairs", tmp_path / "new", unprepared)])
    for process, message in zip(processes, ["line 2 of", "line 2 of", "download_and_prepare()"], strict=True):
        assert process.returncode == 2 and message in process.stderr, process.stderr
        assert len(process.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("kind", "stacks", "message"),
    [
        ("masked", ("decoder",), "needs an encoder alone"),
        ("masked", ("encoder", "decoder"), "needs an encoder alone"),
        ("prefix", ("encoder", "decoder"), "needs a decoder alone"),
        ("causal", ("encoder",), "needs a decoder alone"),
        ("pairs", ("decoder",), "needs an encoder and a decoder"),
        ("spans", ("encoder",), "needs an encoder and a decoder"),
    ],
)
def test_a_model_that_cannot_learn_an_objective_is_refused(kind, stacks, message):
    model = ModelConfig(vocab=4096, width=32, **{name: Stack() for name in stacks})
    with pytest.raises(ValueError, match=message):
        Experiment(model=model, data=data.Data(objective=data.Objective(kind)))


def test_tokens_of_a_batch_are_of_pairs():
    model = ModelConfig(vocab=4096, width=32, decoder=Stack())
    with pytest.raises(ValueError, match=r"training\.batch_tokens=64 counts places of pairs"):
        Experiment(model=model, training=training.Training(batch_tokens=64))
