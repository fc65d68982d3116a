"""Continue a prompt with a trained model, printing as it goes.

python -m experiments.generate --workdir=runs/stdlib --prompt="def main("
python -m experiments.generate --workdir=... --prompt=... --length=200 --top_p=0.9 --temperature=0.8 --seed=1
python -m experiments.generate --workdir=... --prompt=... --greedy --next=10
python -m experiments.generate --workdir=... --prompt=... --length=200 --profile
python -m experiments.generate --workdir=... --prompt=... --draft=SMALLER [--proposals=4]

--workdir also takes a folder in the format of Hugging Face, or the name of a model on its hub. An encoder-decoder, such
as T5 or Marian, reads the prompt as its source and writes the target. An encoder alone lists what may stand in the
place of each mask of the prompt.

With --draft a smaller model with the same tokenizer proposes tokens, which changes the time and not the distribution.

--profile computes the first continuation once more, when everything is compiled, traces that, and says which operations
cost most. The trace goes to `profile` in the folder that --workdir names, or else in the current one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from experiments import choosing, command, devices, loading, outputs, profiling, writing
from transformer import decoding
from transformer.training import distributed

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
DTYPE = loading.define_dtype()
MESH = devices.define_mesh()
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
PROMPT = flags.DEFINE_string("prompt", "", "The text to continue.")
LENGTH = flags.DEFINE_integer("length", 128, "Tokens to add at most.", lower_bound=1, upper_bound=1_000_000)
SAMPLES = flags.DEFINE_integer(
    "samples", 1, "How many continuations to write, each from a seed of its own.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Of the random choices.", lower_bound=0, upper_bound=2**32 - 1)
CHOOSING = choosing.define_flags()
PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "Above 1 makes tokens that are there already less likely.")
NEXT = flags.DEFINE_integer("next", 0, "Also list so many of the likeliest next tokens.", lower_bound=0)
DRAFT = flags.DEFINE_string("draft", None, "A smaller model with the same tokenizer, which proposes tokens.")
PROPOSALS = flags.DEFINE_integer("proposals", 4, "Tokens that the draft proposes at a time.", lower_bound=1)
PROFILE = flags.DEFINE_boolean("profile", False, "Trace one call and print the operations that cost most.")


def main() -> None:
    distributed.check_alone()
    chosen = choosing.method(CHOOSING)
    _check_flags(chosen)
    outputs.standard()
    trained = loading.load(loading.required(WORKDIR), loading.step(STEP.value), DTYPE.value)
    trained = devices.spread(trained, MESH.value)
    if trained.model.config.decoder is None:
        _check_filling(trained)
        fill(trained)
        return
    draft = _draft()
    if count := writing.cut(trained, PROMPT.value, LENGTH.value):
        room = f"the model has {trained.model.config.length} positions for it and --length={LENGTH.value}"
        print(f"note: the first {count} tokens of the prompt's text were left out: {room}", file=sys.stderr)
    reads = trained.model.config.encoder is not None  # and writes something else than the prompt's end
    for sample in range(SAMPLES.value):
        pieces = write(trained, chosen, sample, draft)
        print(PROMPT.value, end="\n" if reads else "", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    if NEXT.value:
        writing.console().print(writing.next_tokens(PROMPT.value, writing.likeliest(trained, PROMPT.value, NEXT.value)))
    profile(lambda: list(write(trained, chosen, 0, draft)))


def _check_flags(chosen: decoding.Method) -> None:
    """Raises ValueError if flags exclude each other, or one would change nothing."""
    if PROPOSALS.present and DRAFT.value is None:
        raise ValueError("--proposals are those of --draft: give one, or leave it out")
    if DRAFT.value is not None and PENALTY.value != 1:
        raise ValueError("--repetition_penalty and --draft exclude each other: give one of them")
    if SAMPLES.value > 1 and isinstance(chosen, decoding.Greedy):
        raise ValueError(f"--greedy writes the same each time: leave out --samples={SAMPLES.value}")


def _check_filling(trained: loading.Trained) -> None:
    """Raises ValueError if flags say how to write, and the model only fills in masks."""
    given = [
        f"--{flag.name}" for flag in (LENGTH, SAMPLES, SEED, *CHOOSING.values(), PENALTY, DRAFT, PROPOSALS)
        if flag.present
    ]  # fmt: skip
    if given:
        raise ValueError(f"{trained.origin} is an encoder alone, which fills in masks: leave out {' and '.join(given)}")


def _draft() -> loading.Trained | None:
    if DRAFT.value is None:
        return None
    return devices.spread(loading.load(DRAFT.value, "latest", DTYPE.value), MESH.value)


def write(
    trained: loading.Trained, chosen: decoding.Method, sample: int, draft: loading.Trained | None
) -> Iterator[str]:
    """One of the continuations, piece by piece; with a draft, in one."""
    key = jax.random.fold_in(jax.random.key(SEED.value), sample)
    if draft is not None:
        text, share = writing.speculate(trained, draft, PROMPT.value, LENGTH.value, PROPOSALS.value, chosen, key)
        print(f"{share:.0%} of the draft's proposals were kept", file=sys.stderr)
        return iter([text])
    return writing.write(trained, PROMPT.value, LENGTH.value, chosen, key, PENALTY.value)


def fill(trained: loading.Trained) -> None:
    """Print what may stand in the place of each mask."""
    for place, rows in enumerate(writing.fillers(trained, PROMPT.value, NEXT.value or 5), start=1):
        writing.console().print(writing.filled(PROMPT.value, place, rows))
    if PROFILE.value:
        # The program above is gone with its function, and a trace needs its text.
        ids = jnp.asarray([trained.ids(PROMPT.value)])
        forward = partial(jax.jit(trained.model.apply), {"params": trained.params}, ids)
        jax.block_until_ready(forward())
        profile(forward)


def profile(again: Callable[[], object]) -> None:
    """Trace what was computed before, and print what it cost, if that is asked for."""
    if PROFILE.value:
        workdir = Path(WORKDIR.value)
        folder = (workdir if workdir.is_dir() else Path()) / "profile"
        profiling.show(profiling.call(again, folder), writing.console())


if __name__ == "__main__":
    command.run(main)
