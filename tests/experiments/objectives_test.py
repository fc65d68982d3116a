"""Every objective by the scripts: trained a little, resumed, measured, and used for what it learnt.

What `causal` does by itself is tested in `train_test`, and what translations are in `translate_test`.
"""

import json
import random
import re

import pytest

from experiments import loading
from transformer import data
from transformer.training import metrics

EVALUATE, GENERATE = "experiments.evaluate", "experiments.generate"
RECIPE = """
from experiments.experiment import Experiment
from transformer.data import Data, Objective, Pairs, Tokenizer
from transformer.models import Attention, ModelConfig, Stack
from transformer.training import Optimizer, Training

STACK = Stack(depth=1, attention=Attention(heads=2), mlp=None)
TEXT = dict(path={text!r}, length=16, validation=0.2, split="tail", tokenizer=Tokenizer(vocab=290))
LETTERS = Tokenizer(kind="characters", fallback=False, end=True)
TASK = dict(path="task:reverse:5-9", length=12, validation=0.3, tokenizer=LETTERS, pairs=Pairs(count=80))
FILES = dict(path={pairs!r}, length=24, validation=0.2, tokenizer=LETTERS)


def get_config(setting):
    kind = setting.rstrip("+")
    encoder, decoder = (None if kind == other else STACK for other in ("prefix", "masked"))
    where = {{"pairs": TASK, "pairs+": FILES}}.get(setting, TEXT)
    return Experiment(
        model=ModelConfig(vocab=290, width=8, length=32, encoder=encoder, decoder=decoder),
        data=Data(objective=Objective(kind), segments=setting.endswith("+"), **where),
        training=Training(
            steps=4, batch_size=8, batch_tokens=200 if setting == "pairs" else 0, evaluate_every=4, checkpoint_every=2,
            log_every=2, head_metrics_every=4 if setting == "pairs+" else 0,
            optimizer=Optimizer(name="sgd", learning_rate=0.1, schedule="constant"),
        ),
        prompts={{"masked+": ("one[MASK]two",), "pairs": ("one",)}}.get(setting, ()),
    ).mutable()
"""
SETTINGS = ("prefix", "masked+", "spans+", "pairs", "pairs+")
SAID = {
    "masked+": "likeliest in mask 1 of 'one[MASK]two'",
    "pairs": "\n1. one\n   ",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """A recipe for every objective, and two parallel files of words of five to nine letters."""
    folder, draw = tmp_path_factory.mktemp("objectives"), random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5 + number % 5)) for number in range(40)]
    (folder / "train.en").write_text("".join(f"{word}\n" for word in words))
    (folder / "train.de").write_text("".join(f"{word.upper()}\n" for word in words))
    paths = {"text": str(tiny / "text.txt"), "pairs": f"{folder / 'train.en'},{folder / 'train.de'}"}
    (folder / "recipe.py").write_text(RECIPE.format(**paths))
    return folder


def train(folder, setting, name, *arguments):
    return ["experiments.train", f"--config={folder / 'recipe.py'}:{setting}", f"--workdir={folder / name}", *arguments]


@pytest.fixture(scope="module")
def runs(scripts, folder):
    """What training each objective said; its run is in the folder by its name, and one that was interrupted."""
    short = train(folder, "pairs", "pairs", "--config.training.steps=2")  # interrupted there, and gone on with below
    processes = scripts([short, *(train(folder, setting, setting) for setting in SETTINGS)])
    for process in processes:
        assert (process.returncode, process.stderr) == (0, ""), process.stderr
    return dict(zip(SETTINGS, processes[1:], strict=True))


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_objective_is_trained_and_shows_what_it_learnt(runs, folder, setting):
    said = runs[setting].stdout
    assert SAID.get(setting, "") in said
    share = float(re.search(r"tokens/s, and (\S+)% of the places in its rows hold tokens", said)[1])
    assert share == 100 if setting in ("prefix", "masked+") else 30 < share < 100
    last = metrics.read(folder / setting)[-1]
    spoken = re.search(
        r"^validation: loss (\S+) nats per token, perplexity \S+, accuracy (\S+)%, \S+ tokens$", said, re.M
    )
    assert last["step"] == 4
    assert float(spoken[1]) == pytest.approx(last["validation_loss"], abs=5e-5)
    assert float(spoken[2]) == pytest.approx(100 * last["validation_accuracy"], abs=5e-3)


def test_what_there_is_to_train_on_is_said_in_words(runs, folder):
    assert re.search(r"text\.txt, 1 documents, [\d,]+ bytes, [\d,]+ tokens to train on", runs["prefix"].stdout)
    counts = data.load(folder / "pairs+" / "data").counts["train"]
    said = f"{counts['pairs']} pairs, {counts['source_tokens']} source and {counts['target_tokens']} target tokens"
    assert said in runs["pairs+"].stdout


def test_every_attention_of_packed_pairs_is_measured_as_they_train(runs, folder):
    (row,) = [row for row in metrics.read(folder / "pairs+") if "heads/decoder/0/0/entropy" in row]
    attentions = {name.split("/0/")[0] for name in row if name.startswith("heads/")}
    assert row["step"] == 4 and attentions == {"heads/encoder", "heads/decoder", "heads/decoder/cross"}
    assert all(row[f"{attention}/0/1/entropy"] > 0 for attention in attentions)


@pytest.mark.slow
def test_pmap_on_two_devices_learns_in_one_go_as_jit_on_one_in_two(scripts, runs, folder):
    (process,) = scripts([train(folder, "pairs", "pmap", "--parallel=pmap", "--config.prompts=()")], devices=2)
    assert process.returncode == 0, process.stderr
    assert "resuming" not in process.stdout and f"resuming {folder / 'pairs'} at step 2" in runs["pairs"].stdout
    for name in ("loss", "grad_norm", "validation_loss", "validation_accuracy"):
        one, two = (metrics.read(folder / run)[-1][name] for run in ("pairs", "pmap"))
        assert two == pytest.approx(one, rel=1e-5)  # float32 sums in another order


def test_measures_say_what_the_objective_is_about(scripts, runs, folder):
    def request(program, name, *arguments):
        return [program, f"--workdir={folder / name}", *arguments]

    processes = scripts(
        [
            *(request(EVALUATE, name, "--json") for name in ("prefix", "masked+", "spans+")),
            request(EVALUATE, "pairs", "--json", "--beams=1", "--batch_size=8"),
            request(EVALUATE, "pairs+", "--beams=1", "--batch_size=8"),
            request(EVALUATE, "masked+"),
            request(EVALUATE, "pairs", "--pairs=task:reverse:3-4", "--beams=1", "--batch_size=8"),
            request(GENERATE, "masked+", "--prompt=one[MASK]two[MASK]", "--next=2"),
            request(GENERATE, "prefix", "--prompt=one", "--greedy", "--length=3", "--next=1"),
            request(GENERATE, "spans+", "--prompt=one<extra_id_0>two", "--greedy", "--length=3"),
        ]
    )
    for process in processes:
        assert (process.returncode, process.stderr) == (0, ""), process.stderr
    *measured, files, baselines, elsewhere, filled, continued, restored = (process.stdout for process in processes)
    measured = [json.loads(line) for line in measured]
    for setting, values in zip(("prefix", "masked+", "spans+", "pairs"), measured, strict=True):
        last = metrics.read(folder / setting)[-1]
        for name in ("loss", "accuracy"):  # rows of unequal lengths come in batches of another size
            assert values[name] == pytest.approx(last[f"validation_{name}"], rel=1e-5)
        assert values["step"] == 4 and "bits_per_byte" not in values
    _, masked, _, task = measured
    assert task["sequences"] == len(data.load(folder / "pairs" / "data").validation) and 0 <= task["exact"] <= 1
    loss = metrics.read(folder / "pairs+")[-1]["validation_loss"]
    assert re.fullmatch(rf"step 4: loss {loss:.4f} .* tokens\nBLEU .*\nchrF2 .*\n", files)
    lines = baselines.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 4", "unigram baseline", "bigram baseline"]
    for line, values in zip(lines, (masked, masked["unigram"], masked["bigram"]), strict=True):
        assert f"perplexity {values['perplexity']:.2f}, accuracy {values['accuracy']:.2%}" in line
    assert re.fullmatch(r"step 4: \d+\.\d\d% of 80 sequences right\n", elsewhere)
    assert filled.count("│") == 2 * 2 * 3 and all(f"in mask {place} of" in filled for place in (1, 2))
    assert (
        continued.startswith("one")
        and "likeliest next tokens after 'one'" in continued
        and restored.startswith("one<extra_id_0>two\n")
    )


def test_wrong_combinations_and_wrong_pairs_are_one_line_each(scripts, runs, folder, tmp_path):
    (tmp_path / "short.de").write_text("EINS\n")
    lines = (folder / "train.de").read_text().splitlines()
    for name, line in (("gap", ""), ("long", "x" * 24)):
        (tmp_path / f"{name}.de").write_text("\n".join([*lines[:6], line, *lines[7:]]) + "\n")

    def begun(setting, value, name="data.path"):
        return train(folder, setting, tmp_path / "new", f"--config.{name}={value}")

    paths = {name: f"{folder / 'train.en'},{tmp_path / name}.de" for name in ("short", "gap", "long")}
    prepare = (
        'run python -c "import tensorflow_datasets as tfds, tensorflow_datasets.translate; '
        "tfds.builder('wmt14_translate/de-en', file_format='array_record').download_and_prepare()\""
    )
    here = {name: f"--workdir={folder / name}" for name in SETTINGS}
    pairs = f"--pairs={folder / 'train.en'},{folder / 'train.de'}"
    mistakes = {
        "train.en has 40 lines, and": begun("pairs+", paths["short"]),
        "line 7 has an empty target: take the pair out": begun("pairs+", paths["gap"]),
        "line 7 has a target of 24 tokens, and data.length=24 has room for 23": begun("pairs+", paths["long"]),
        "no task is called 'revers'; the nearest are reverse": begun("pairs", "task:revers"),
        prepare: begun("pairs+", "tfds:wmt14_translate/de-en"),
        "training.batch_tokens=64 counts places of pairs": begun("pairs+", "64", "training.batch_tokens"),
        "prompt 'one two' has no [MASK]": begun("masked+", "('one two',)", "prompts"),
        "names no pairs": [EVALUATE, here["pairs"], f"--pairs={folder / 'train.en'}"],
        "is no encoder with a decoder": [EVALUATE, here["masked+"], pairs],
        "is no decoder alone": [EVALUATE, here["pairs"], f"--text={folder / 'train.en'}"],
        "--text and --pairs exclude each other": [EVALUATE, here["pairs"], f"--text={folder / 'train.en'}", pairs],
        "--beams and --tokenize say how": [EVALUATE, here["prefix"], "--beams=2", "--tokenize=none"],
        "--truncate cuts sources of --pairs": [EVALUATE, here["pairs"], "--truncate"],
        "prompt 'one two' has no [MASK]: an": [GENERATE, here["masked+"], "--prompt=one two"],
        "reads at most 12": [EVALUATE, here["pairs"], "--pairs=task:copy:12-20"],
    }
    for said, process in zip(mistakes, scripts([*mistakes.values()]), strict=True):
        assert (process.returncode, process.stdout) == (2, ""), (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line, line
    assert not (tmp_path / "new").exists()


def test_the_mean_of_checkpoints_comes_from_a_run(runs, folder):
    assert loading.load(folder / "pairs", average=2).origin == "step 4, mean of 2 checkpoints"
