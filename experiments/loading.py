"""A trained model: from a run of `experiments.train`, from a folder in the format of Hugging Face, or from its hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.experiment import Experiment
from transformer import data, interop, models, text, training

FILLED = {"masked", "spans"}  # objectives whose texts have tokens that stand for others
MEANING = "A run of experiments.train, a folder in the format of Hugging Face, or the name of a model on its hub."


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model, its parameters and the tokenizer that goes with them.

    Attributes:
      origin: what to call it in print.
      experiment: of a run; None for a pretrained folder.
      step: of a run.
      start: the id that an encoder-decoder's target begins with, or None.
      stop: the ids that end a text.
      banned: the ids that are never written.
    """

    model: models.Transformer
    params: dict
    tokenizer: text.Tokenizer
    origin: str
    experiment: Experiment | None = None
    step: int | None = None
    start: int | None = None
    stop: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()

    def ids(self, prompt: str) -> list[int]:
        """The ids of a text as the model has seen texts begin.

        Documents of a run begin with the opening token, and sources end with the end; where it learnt to fill in masks
        or sentinels, their names are read. Those of pretrained models are wrapped as their tokenizer says.

        Raises:
          ValueError: if there are none, or the tokenizer cannot spell the text.
        """
        if self.experiment is not None:
            if (kind := self.experiment.data.objective.kind) not in FILLED | {"pairs"}:
                return self.document(prompt)
            ids = self.tokenizer.encode(prompt, special=kind in FILLED).tolist()
            if kind == "masked":
                opening = self.tokenizer.opening
                return self._known(ids if ids[:1] == [opening] else [opening, *ids])
            return self._known(ids if ids[-1:] == [self.tokenizer.end] else [*ids, self.tokenizer.end])
        ids = self.tokenizer.encode(prompt, special=True).tolist()
        return self._known(ids) if ids else self.document(prompt)

    @property
    def prefix(self) -> bool:
        """Whether a prompt's tokens all see each other, as in training."""
        return self.experiment is not None and self.experiment.data.objective.kind == "prefix"

    def spell(self, ids: np.ndarray) -> str:
        """The text of ids, without those that the tokenizer does not have: a vocabulary may be wider."""
        return self.tokenizer.decode(ids[ids < self.tokenizer.size])

    def document(self, content: str) -> list[int]:
        """The ids of a text behind the opening token, where there is one; errors as of `ids`."""
        return self._known(opened(self.tokenizer, content))

    def _known(self, ids: list[int]) -> list[int]:
        vocab = self.model.config.vocab
        if max(ids) >= vocab:
            raise ValueError(
                f"{self.origin} has a tokenizer of {self.tokenizer.size} entries for a model of {vocab}, and the text "
                f"needs entry {max(ids)}: put the tokenizer beside it that the model was trained with"
            )
        return ids


def opened(tokenizer: text.Tokenizer, prompt: str) -> list[int]:
    """The ids of a text behind the opening token, where the tokenizer has one; raises ValueError if there are none."""
    ids = ([] if tokenizer.opening is None else [tokenizer.opening]) + tokenizer.encode(prompt).tolist()
    if not ids:
        raise ValueError("prompt is empty, and the tokenizer has no token that begins a text: give some text")
    return ids


def load(
    source: str | Path, step: int | str = "latest", dtype: str | None = None, average: int | None = None
) -> Trained:
    """The model of a working directory, at a step, or its `latest` or `best` one; or a pretrained one.

    Args:
      source: see `MEANING`.
      step: of a run.
      dtype: of activations and matrix products; None is a run's own, and float32 for a pretrained model.
      average: of a run, how many checkpoints up to the step to take the mean of; None takes the one.

    Raises:
      ValueError: if there is none, it has no tokenizer, or it is damaged.
    """
    if is_run(source):
        return _load_run(Path(source), step, dtype, average)
    if Path(source).is_dir() and not interop.is_folder(source):
        raise ValueError(f"{source} holds neither checkpoints nor a config.json: name a run or a pretrained model")
    if step != "latest" or average is not None:
        flag = f"--step={step}" if average is None else f"--average={average}"
        raise ValueError(f"{flag} chooses among checkpoints, and {source} has none: leave it out")
    folder = interop.resolve(source)
    model, params, tokenizer = interop.load(folder, dtype=dtype or "float32")
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer: put tokenizer.json, or vocab.json and merges.txt, beside it")
    ids = interop.generation(folder)
    # Configs of small copies may still have the ids of the large vocabulary.
    stop, banned = (tuple(one for one in some if one < model.config.vocab) for some in (ids.stop, ids.banned))
    start = tokenizer.pad if ids.start is None else ids.start  # the targets of T5 and Marian begin with padding
    return Trained(model, params, tokenizer, str(source), start=start, stop=stop or _end(tokenizer), banned=banned)


def is_run(source: str | Path) -> bool:
    """Whether a path is a working directory with checkpoints."""
    return (Path(source) / training.CHECKPOINTS).is_dir()


def initial(experiment: Experiment) -> tuple[Experiment, dict]:
    """An experiment with the model and the tokenizer of its `initial`, and the parameters on the host.

    Raises:
      ValueError: as `load`, or if the model does not fit the rest of the recipe.
    """
    source, dtype = experiment.initial, experiment.model.param_dtype
    if is_run(source):
        trained = load(source)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.dtype(dtype)), trained.params)
        return experiment.beginning_with(trained.model.config, str(Path(source) / "data")), params
    folder = interop.resolve(source)
    model, params, tokenizer = interop.load(folder, param_dtype=dtype, place=lambda array: array)
    if tokenizer is None and experiment.data.tokenizer.folder is None:
        raise ValueError(f"{source} has no tokenizer: name one with --config.data.tokenizer.folder=FOLDER")
    return experiment.beginning_with(model.config, str(folder)), params


def _load_run(workdir: Path, step: int | str, dtype: str | None, average: int | None) -> Trained:
    if average is None:
        restored = training.load_params(workdir, step)
    else:
        restored = training.average_checkpoints(workdir, average, step)
    experiment = Experiment.build(restored.recipe["config"])
    tokenizer = text.load(workdir / "data")
    if tokenizer.fingerprint != restored.recipe["data"]["tokenizer"]:
        raise ValueError(f"{workdir / 'data'} holds another tokenizer than the checkpoint was trained with")
    trained = of_run(experiment, jax.tree.map(jnp.asarray, restored.state), tokenizer, restored.step, dtype)
    if average is None:
        return trained
    return dataclasses.replace(trained, origin=f"{trained.origin}, mean of {average} checkpoints")


def of_run(
    experiment: Experiment, params: dict, tokenizer: text.Tokenizer, step: int, dtype: str | None = None
) -> Trained:
    """What a run has at a step; `dtype` None is its own."""
    model = models.Transformer(dataclasses.replace(experiment.model, dtype=dtype or experiment.model.dtype))
    crosses = experiment.model.encoder is not None and experiment.model.decoder is not None
    start = data.begins_with(tokenizer) if crosses else None
    return Trained(model, params, tokenizer, f"step {step}", experiment, step, start, _end(tokenizer))


def _end(tokenizer: text.Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.end is None else (tokenizer.end,)


def define_dtype() -> flags.FlagHolder:
    """The flag `--dtype` of scripts that only read a model."""
    return flags.DEFINE_enum("dtype", None, models.DTYPES, "Of activations; default: a run's own, else float32.")


def define_average() -> flags.FlagHolder:
    """The flag `--average` of scripts that read a run."""
    meaning = "The mean of so many checkpoints up to --step, in the place of one."
    return flags.DEFINE_integer("average", None, meaning, lower_bound=1)


def required(workdir: flags.FlagHolder) -> Path:
    """The value of a `--workdir` flag that must be given."""
    if not workdir.value:
        raise ValueError("--workdir is missing: name the run or the folder to use, such as --workdir=runs/stdlib")
    return Path(workdir.value)


def step(name: str) -> int | str:
    """What a `--step` flag names: `latest`, `best`, or a number."""
    if name not in ("latest", "best") and not name.isdecimal():
        raise ValueError(f"--step={name} is not a checkpoint: give latest, best or a number")
    return int(name) if name.isdecimal() else name
