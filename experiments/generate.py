"""Continue a prompt with a trained model, printing as it goes.

python -m experiments.generate --workdir=runs/stdlib --prompt="def main("
python -m experiments.generate --workdir=... --prompt=... --length=200 --top_p=0.9 --temperature=0.8 --seed=1
python -m experiments.generate --workdir=... --prompt=... --greedy --next=10

--workdir also takes a folder in the format of Hugging Face, or the name of a model on its hub. An encoder-decoder, such
as T5 or Marian, reads the prompt as its source and writes the target. An encoder alone lists what may stand in the
place of each mask of the prompt.
"""

from __future__ import annotations

import sys

import jax
from absl import flags

from experiments import command, loading, writing
from transformer import decoding

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
DTYPE = loading.define_dtype()
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
PROMPT = flags.DEFINE_string("prompt", "", "The text to continue.")
LENGTH = flags.DEFINE_integer("length", 128, "Tokens to add at most.", lower_bound=1, upper_bound=1_000_000)
SAMPLES = flags.DEFINE_integer(
    "samples", 1, "How many continuations to write, each from a seed of its own.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Of the random choices.", lower_bound=0, upper_bound=2**32 - 1)
GREEDY = flags.DEFINE_boolean("greedy", False, "Always take the likeliest token.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Below 1 sharpens the choice, above 1 flattens it.")
TOP_K = flags.DEFINE_integer("top_k", None, "Choose among the k likeliest tokens.")
TOP_P = flags.DEFINE_float("top_p", None, "Choose among the likeliest tokens that hold this share of probability.")
MIN_P = flags.DEFINE_float("min_p", None, "Choose among tokens at least this share as likely as the likeliest.")
PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "Above 1 makes tokens that are there already less likely.")
NEXT = flags.DEFINE_integer("next", 0, "Also list so many of the likeliest next tokens.", lower_bound=0)


def main() -> None:
    chosen = method()
    sys.stdout.reconfigure(errors="replace")  # a byte model may write what no encoding can
    trained = loading.load(loading.required(WORKDIR), loading.step(STEP.value), DTYPE.value)
    if trained.model.config.decoder is None:
        fill(trained)
        return
    reads = trained.model.config.encoder is not None  # and writes something else than the prompt's end
    for sample in range(SAMPLES.value):
        key = jax.random.fold_in(jax.random.key(SEED.value), sample)
        pieces = writing.write(trained, PROMPT.value, LENGTH.value, chosen, key, PENALTY.value)
        print(PROMPT.value, end="\n" if reads else "", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    if NEXT.value:
        writing.console().print(writing.next_tokens(PROMPT.value, writing.likeliest(trained, PROMPT.value, NEXT.value)))


def fill(trained: loading.Trained) -> None:
    """Print what may stand in the place of each mask."""
    for place, rows in enumerate(writing.fillers(trained, PROMPT.value, NEXT.value or 5), start=1):
        writing.console().print(writing.filled(PROMPT.value, place, rows))


def method() -> decoding.Method:
    """The sampling method that the flags ask for.

    Raises:
      ValueError: if they ask for several at once.
    """
    named = {"top_k": TOP_K.value, "top_p": TOP_P.value, "min_p": MIN_P.value, "greedy": GREEDY.value or None}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"--{' and --'.join(given)} exclude each other: give one of them")
    temperature = TEMPERATURE.value
    match given:
        case ["greedy"]:
            return decoding.Greedy()
        case ["top_k"]:
            return decoding.TopK(TOP_K.value, temperature=temperature)
        case ["top_p"]:
            return decoding.TopP(TOP_P.value, temperature=temperature)
        case ["min_p"]:
            return decoding.MinP(MIN_P.value, temperature=temperature)
    return decoding.Temperature(temperature)


if __name__ == "__main__":
    command.run(main)
