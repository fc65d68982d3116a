"""Every field of `Data` and `Training` changes something that can be seen, by the way from a recipe to a run.

This file is also the program that looks, because the training script defines flags.
"""

import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import tempfile
import typing
from pathlib import Path

import numpy as np
import pytest

from transformer.data import Data
from transformer.training import Training

STACK = {"depth": 1, "attention": {"heads": 1}, "mlp": None}
MASKED = {
    "data.objective.kind": "masked",
    "data.tokenizer": {"kind": "bpe", "vocab": 270},
    "data.length": 16,
    "model.encoder": STACK,
    "model.decoder": None,
}
SPANS = {
    "data.objective.kind": "spans",
    "data.tokenizer": {"kind": "bpe", "vocab": 300},
    "data.length": 32,
    "model.encoder": STACK,
}
PAIRS = {
    "data.objective.kind": "pairs",
    "data.path": "{folder}/pairs.tsv",
    "data.split": "document",
    "data.length": 32,
    "model.encoder": STACK,
}

# Field: where the difference shows, its other value, and what else has to be set for the field to be read.
TABLE = {
    "data.path": ("corpus", "{folder}/other.txt", {}),
    "data.length": ("batch", 4, {}),
    "data.validation": ("corpus", 0.5, {}),
    "data.split": ("corpus", "document", {"data.path": "{folder}"}),
    "data.tokenizer.kind": ("corpus", "characters", {}),
    "data.tokenizer.vocab": ("corpus", 270, {"data.tokenizer.kind": "bpe"}),
    "data.tokenizer.fallback": ("corpus", False, {"data.tokenizer.kind": "characters"}),
    "data.tokenizer.end": ("corpus", True, {"data.tokenizer.kind": "characters"}),
    "data.tokenizer.folder": ("corpus", "{folder}/tokenizer", {}),
    "data.segments": ("batch", True, {}),
    "data.objective.kind": ("batch", "prefix", {}),
    "data.objective.rate": ("batch", 0.5, MASKED),
    "data.objective.whole_words": ("batch", True, MASKED | {"data.objective.rate": 0.4}),
    "data.objective.span": ("batch", 1.5, SPANS),
    "data.pairs.source": ("batch", "3", PAIRS | {"data.pairs.source": "1", "data.pairs.target": "2"}),
    "data.pairs.target": ("batch", "3", PAIRS | {"data.pairs.source": "1", "data.pairs.target": "2"}),
    "data.pairs.validation": ("batch", "{folder}/other.tsv", PAIRS),
    "data.pairs.misfits": ("error", "error", PAIRS | {"data.length": 12, "data.pairs.misfits": "truncate"}),
    "data.pairs.count": ("batch", 40, PAIRS | {"data.path": "task:copy:1-3", "data.pairs.count": 30}),
    "data.limit": ("corpus", 60_000, {"data.path": "stdlib", "data.limit": 50_000}),
    "data.suffixes": ("corpus", (".txt", ".rst"), {"data.path": "{folder}"}),
    "data.tfds.folder": ("error", "{folder}/elsewhere", {"data.path": "tfds:none"}),
    "data.tfds.split": ("error", "test", {"data.path": "tfds:stored", "data.tfds.folder": "{folder}/datasets"}),
    "data.tfds.feature": ("error", "words", {"data.path": "tfds:stored", "data.tfds.folder": "{folder}/datasets"}),
    "training.steps": ("lines", 6, {}),
    "training.batch_size": ("batch", 4, {}),
    "training.batch_tokens": ("batch", 512, PAIRS),
    "training.accumulation": ("program", 2, {}),
    "training.label_smoothing": ("program", 0.1, {}),
    "training.z_loss": ("program", 0.1, {}),
    "training.loss_chunk": ("program", 100, {}),
    "training.ema": ("program", 0.9, {}),
    "training.evaluate_every": ("evaluations", 1, {}),
    "training.checkpoint_every": ("checkpoints", 3, {}),
    "training.keep": ("checkpoints", 1, {}),
    "training.log_every": ("lines", 2, {}),
    "training.head_metrics_every": ("heads", 2, {}),
    "training.skips": ("bad", 1, {}),
    "training.spike": ("program", 3.0, {}),
    "training.rollbacks": ("bad", 0, {"training.skips": 0}),
    "training.fingerprint_every": ("fingerprints", 0, {}),
    "training.on_save_error": ("unsaved", "continue", {}),
    "training.optimizer.name": ("program", "sgd", {}),
    "training.optimizer.learning_rate": ("program", 0.1, {}),
    "training.optimizer.schedule": ("program", "constant", {}),
    "training.optimizer.warmup": ("program", 2, {}),
    "training.optimizer.decay": ("program", 0.5, {"training.optimizer.schedule": "warmup_stable_decay"}),
    "training.optimizer.final": ("program", 0.5, {}),
    "training.optimizer.weight_decay": ("program", 0.1, {}),
    "training.optimizer.clip": ("program", None, {}),
    "training.optimizer.beta1": ("program", 0.5, {}),
    "training.optimizer.beta2": ("program", 0.5, {}),
    "training.optimizer.epsilon": ("program", 1e-3, {}),
    "training.optimizer.momentum": ("program", 0.5, {"training.optimizer.name": "sgd"}),
}
BASE = {
    "data": {
        "path": "{folder}/text.txt",
        "length": 8,
        "validation": 0.2,
        "split": "tail",
        "tokenizer": {"kind": "bytes", "vocab": 260},
    },
    "training": {"steps": 5, "batch_size": 8, "evaluate_every": 4, "checkpoint_every": 2, "keep": 2, "log_every": 3},
    "model": {"vocab": 512, "width": 4, "decoder": {"depth": 1, "attention": {"heads": 1}, "mlp": None}},
}


def leaves(kind, path):
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        yield from (
            leaves(inner, f"{path}.{field.name}") if dataclasses.is_dataclass(inner) else [f"{path}.{field.name}"]
        )


def test_every_field_is_in_the_table():
    assert set(TABLE) == {*leaves(Data, "data"), *leaves(Training, "training")}


@pytest.fixture(scope="module")
def seen(script):
    """Field -> what is seen without and with the change; and the same twice, to know that nothing else changes."""
    process = script(__file__)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("field", TABLE)
def test_changing_a_field_is_seen(seen, field):
    before, again, after = seen[field]
    assert before == again
    assert before != after
    assert (TABLE[field][0] == "error") == str(after).startswith("error: ")


def changed(tree, changes, folder):
    """A copy of the tree with values at dotted paths, and the folder's name wherever it is spelt `{folder}`."""
    tree = json.loads(json.dumps(tree))
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return json.loads(json.dumps(tree).replace("{folder}", str(folder)))


def main():
    """Prints, for each field, what is seen before, again and after."""
    from absl import flags

    flags.FLAGS(["fields"])
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for field, (where, value, context) in TABLE.items():
            trees = [changed(BASE, each, folder) for each in (context, context, {**context, field: value})]
            results[field] = [look(where, json.dumps(tree), time) for time, tree in enumerate(trees)]
    print(json.dumps(results))


def prepare(folder):
    """Texts, a tokenizer, and a dataset of one row."""
    import tensorflow_datasets as tfds
    from etils import epath

    from transformer import text

    words = "all that is and all that is not "
    for name, content in {"text.txt": words * 20, "other.txt": "Another. " * 60, "more.rst": "More. " * 60}.items():
        (folder / name).write_text(content)
    rows = [f"source {number}\ttarget of {number}\tthird {number}\n" for number in range(40)]
    for name, kept in {"pairs.tsv": rows, "other.tsv": rows[:3]}.items():
        (folder / name).write_text("".join(kept))
    text.BPE.train([words], 260).save(folder / "tokenizer")

    class Stored(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = epath.Path(folder)  # where the library looks for descriptions; there are none

        def _info(self):
            features = {"text": tfds.features.Text(), "words": tfds.features.Scalar(np.int64)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"text": words * 20, "words": 160}

    Stored(data_dir=str(folder / "datasets"), file_format="array_record").download_and_prepare()


@functools.cache
def look(where, tree, time):
    """What can be seen of an experiment at one place, for the first, second or third time, as JSON."""
    from rich.console import Console

    from experiments import train
    from experiments.experiment import Experiment
    from transformer import data

    with tempfile.TemporaryDirectory() as workdir:
        experiment = Experiment.build(json.loads(tree))
        try:
            corpus = data.prepare(experiment.data, Path(workdir) / "data")
        except ValueError as error:
            return f"error: {error}"
        run = train.Run(experiment, corpus, Path(workdir), Console(file=io.StringIO()))
        if where == "program":
            return digest(program(run).encode())
        if where == "batch":
            batch = next(data.batches(corpus, **run.sizes, seed=0))
            return {name: [array.shape, digest(array.tobytes())] for name, array in batch.items()}
        if where == "error" and isinstance(corpus, data.Bitext):
            return corpus.fingerprint
        if where in ("corpus", "error"):
            sides = [digest(np.asarray(side, np.int64).tobytes()) for side in (corpus.train, corpus.validation)]
            return [*sides, corpus.tokenizer.fingerprint]
        return written(run, where)


def program(run):
    """The training step before it is compiled."""
    import jax
    import jax.numpy as jnp

    from transformer import data

    state = jax.eval_shape(run.steps.init)
    batch = next(data.batches(run.corpus, batch_size=run.experiment.training.batch_size, seed=0))
    return jax.jit(run.parallel._train_step).lower(state, jax.tree.map(jnp.asarray, batch)).as_text()


def written(run, where):
    """Steps of lines, evaluations, checkpoints or heads of a run whose steps do nothing."""
    import jax
    import jax.numpy as jnp

    from transformer import training
    from transformer.training import integrity, loop, metrics, utilisation

    def train(state, batch):
        one = jnp.ones(())
        numbers = dict.fromkeys(("loss", "nats", "count", "grad_norm"), one)
        bad = max(int(state.step) - 1, 0) if where == "bad" else 0  # from the third step on, after a checkpoint
        return state.replace(step=state.step + 1), {**numbers, "finite": jnp.asarray(not bad), "bad": jnp.int32(bad)}

    utilisation.peak = lambda: 1e12
    run.state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run.steps.init))
    run.parallel.train, run.parallel.evaluate = train, lambda params, batch: {"nats": 1.0, "count": 1.0}
    asked = []
    if where == "fingerprints":
        loop._Loop._fingerprint = lambda self: asked.append(self.step) or {}
    if where == "unsaved":
        integrity.write_manifest = _full
    try:
        run.train()
    except training.exits.Ended as error:
        return str(error).replace(str(run.workdir), "")
    rows = metrics.read(run.workdir)
    with training.Checkpoints(run.workdir) as checkpoints:
        steps = checkpoints.steps()
    evaluations = [row["step"] for row in rows if "validation_loss" in row]
    heads = [row["step"] for row in rows if any(name.startswith("heads/") for name in row)]
    lines = [row["step"] for row in rows]
    seen = {"lines": lines, "bad": lines, "checkpoints": steps, "unsaved": steps, "fingerprints": [*asked]}
    return (seen | {"evaluations": evaluations, "heads": heads})[where]


def _full(folder):
    """There is no room for the second checkpoint."""
    if folder.name.startswith("4"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (folder / "manifest.json").write_text("{}")


def digest(content):
    return hashlib.sha256(content).hexdigest()[:12]


if __name__ == "__main__":
    main()
