"""Working directories that no training made, so that what is in them is known."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from experiments.experiment import Experiment
from transformer import data, interop, models, text, training
from transformer.data import Data, Objective, Tokenizer
from transformer.models import Attention, Init, Mlp, ModelConfig, Position, Readout, Stack

LOSSES = {1: 3.0, 2: 1.0, 3: 2.0}  # by step: the second is the best and the third the latest


@dataclasses.dataclass(frozen=True)
class Made:
    workdir: object
    text: str
    experiment: Experiment
    params: dict  # by step: those of the moving average


def make(workdir, path, vocab=300, position="rotary", **tokenizer):
    """A run whose every step has other parameters, large enough that its logits differ much."""
    stack = Stack(depth=1, mlp=None, attention=Attention(heads=2), position=Position(kind=position), dropout=0.5)
    experiment = Experiment(
        model=ModelConfig(vocab=vocab, width=8, length=32, decoder=stack, init=Init(scale=0.5, embedding=1.0)),
        data=Data(
            path=str(path), length=16, validation=0.05, split="tail", tokenizer=Tokenizer(vocab=280, **tokenizer)
        ),
    )
    return Made(workdir, path.read_text(), experiment, save(workdir, experiment))


def save(workdir, experiment):
    """Random checkpoints of an experiment; returns the averages of each."""
    corpus = data.prepare(experiment.data, workdir / "data")
    recipe = {"config": experiment.dictionary(), "data": dict(corpus.recipe)}
    model, optimizer = models.Transformer(experiment.model), training.optimizers.build(training.Optimizer(), 3)
    ids = jnp.zeros((1, 1), jnp.int32)
    read = {"source": ids} if None not in (experiment.model.encoder, experiment.model.decoder) else {}
    init, averages = jax.jit(lambda key: model.init(key, ids, **read)["params"]), {}
    with training.Checkpoints(workdir, keep=3) as checkpoints:
        for step, loss in LOSSES.items():
            params, averages[step] = (jax.device_get(init(jax.random.key(step + offset))) for offset in (10, 0))
            state = training.create(params, optimizer, 0.9).replace(step=np.int32(step), ema=averages[step])
            checkpoints.save(jax.tree.map(np.array, state), recipe, loss)
    return averages


@pytest.fixture(scope="session")
def made(tmp_path_factory, tiny):
    """With a tokenizer of 280 entries, fewer than the model's 300."""
    return make(tmp_path_factory.mktemp("made"), tiny / "text.txt")


@pytest.fixture(scope="session")
def lettered(tmp_path_factory, tiny):
    """With learned positions, and a tokenizer that spells nothing but the letters of its text."""
    folder = tmp_path_factory.mktemp("lettered")
    return make(folder, tiny / "text.txt", vocab=15, position="learned", kind="characters", fallback=False)


@pytest.fixture(scope="session")
def paired(tmp_path_factory):
    """Of letters and their order turned round, with files `train.en`, `train.de`; a source has at most 40 letters."""
    folder = tmp_path_factory.mktemp("paired")
    lines = ["".join("abcd"[(row * place) % 4] for place in range(1, row + 2)) for row in range(12)]
    (folder / "train.en").write_text("".join(f"{line}\n" for line in lines))
    (folder / "train.de").write_text("".join(f"{line[::-1]}\n" for line in lines))
    stack = Stack(depth=1, mlp=None, attention=Attention(heads=2))
    experiment = Experiment(
        model=ModelConfig(
            vocab=8, width=8, length=64, encoder=stack, decoder=stack, readout=Readout(tied=False),
            init=Init(scale=2.0, embedding=1.0, output=1.0),
        ),
        data=Data(
            path=f"{folder / 'train.en'},{folder / 'train.de'}", objective=Objective("pairs"), length=41,
            validation=0.3, tokenizer=Tokenizer(kind="characters", fallback=False, end=True),
        ),
    )  # fmt: skip
    return Made(folder, (folder / "train.en").read_text(), experiment, save(folder / "run", experiment))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, tiny):
    """A folder with a small random Llama, whose tokenizer learnt from the tiny text."""
    folder = tmp_path_factory.mktemp("pretrained") / "llama"
    stack = Stack(depth=2, attention=Attention(4, 2), mlp=Mlp(24))
    model = models.Transformer(
        ModelConfig(vocab=280, width=16, length=32, decoder=stack, init=Init(scale=0.5, embedding=1.0))
    )
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    interop.save(folder, model, params, text.BPE.train([(tiny / "text.txt").read_text()], 280))
    return folder


@pytest.fixture(scope="module")
def imported():
    """`imported("experiments.explore")`: a script's functions, without its flags being defined twice."""
    known = set(flags.FLAGS)

    def load(name):
        spec = importlib.util.find_spec(name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    flags.FLAGS.unparse_flags()
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)
