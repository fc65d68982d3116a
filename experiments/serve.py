r"""Continue many prompts with a trained model, several at a time, each written down when it is done.

    python -m experiments.serve --workdir=runs/stdlib --input=prompts.txt --output=out.jsonl [--slots=8] [--greedy]
    python -m experiments.serve --workdir=runs/stdlib --input=prompts.jsonl --output=-
    tail -f prompts.txt | python -m experiments.serve --workdir=runs/stdlib

A line of the input is a prompt, or, with `--json` and in files named `.jsonl`, an object with a `prompt` and, where
wanted, a `length`, a `seed` and an `id`. A line of the output is an object with the `id` (or else the number of the
line, from 1), the `prompt`, the `text` that was added, its number of `tokens`, and the `reason` for its end: `stop`,
`length`, or `error` with an `error` that says why the prompt was refused. Where a prompt was too long for the model's
positions, `cut` says how many of its first tokens were left out. Lines come in the order in which they end.

A prompt with a `seed` has the text that `experiments.generate` gives it with that `--seed`; line n without one has that
of sample n of the script's own `--seed`. A mistake in a file ends the program before anything is written; one in a line
of standard input is answered with an error, and the rest goes on, as it does while no line comes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import jax
from absl import flags

from experiments import choosing, command, devices, inputs, loading, outputs, writing
from experiments.loading import Trained
from transformer import text
from transformer.decoding.serve import Request, Response, serve
from transformer.training import distributed

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
DTYPE = loading.define_dtype()
MESH = devices.define_mesh()
STEP = flags.DEFINE_string("step", "latest", "Which checkpoint: latest, best (lowest validation loss) or a number.")
INPUT = flags.DEFINE_string("input", "-", "A file of prompts, one a line; -: standard input.")
OUTPUT = flags.DEFINE_string("output", "-", "Where the results go, in the place of what is there; -: standard output.")
JSON = flags.DEFINE_boolean("json", None, "Lines are objects; default: where the input's name ends in .jsonl.")
LENGTH = flags.DEFINE_integer("length", 128, "Tokens to add at most.", lower_bound=1, upper_bound=1_000_000)
SLOTS = flags.DEFINE_integer("slots", 8, "Prompts continued at a time.", lower_bound=1, upper_bound=65_536)
CAPACITY = flags.DEFINE_integer(
    "capacity", None, "Most tokens of a prompt and its text; default: a file's, or the model's length.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Of the random choices.", lower_bound=0, upper_bound=2**32 - 1)
CHOOSING = choosing.define_flags()

FIELDS = {"prompt": str, "length": int, "seed": int, "id": str | int}


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a line asks for; errors name the line by `origin`."""

    origin: str
    id: str | int
    prompt: str
    length: int
    key: jax.Array


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Asked(Request):
    """What a line asks for, in ids, without the first tokens that were cut."""

    ask: Ask
    cut: int = 0


@dataclasses.dataclass
class Book:
    """What is written down, and how much it was."""

    out: TextIO = sys.stdout
    requests: int = 0
    refused: int = 0
    tokens: int = 0
    turns: int = 0
    busy: int = 0  # turns of all rows together

    def answer(self, trained: Trained, response: Response) -> None:
        """Write what became of a request."""
        ask, tokens = response.request.ask, response.tokens
        if response.error is not None:
            self.refuse(ask.id, ask.prompt, response.error)
            return
        self.tokens += len(tokens)
        self.busy += len(tokens) - 1
        self.turns = response.turn
        spelt = continuation(trained, response)
        cut = {"cut": response.request.cut} if response.request.cut else {}
        self._write(id=ask.id, prompt=ask.prompt, text=spelt, tokens=len(tokens), reason=response.reason, **cut)

    def refuse(self, id: str | int, prompt: str | None, error: str) -> None:
        """Write why there is no text."""
        self.refused += 1
        self._write(id=id, prompt=prompt, text="", tokens=0, reason="error", error=error)

    def _write(self, **fields) -> None:
        self.requests += 1
        print(json.dumps(fields), file=self.out, flush=True)

    def summary(self, seconds: float, slots: int) -> str:
        """One line of totals."""
        refused = f" ({self.refused} refused)" if self.refused else ""
        share = self.busy / max(self.turns * slots, 1)
        return (
            f"{self.requests} requests{refused}, {self.tokens} tokens in {seconds:.1f} s: "
            f"{self.tokens / seconds:.1f} tokens/s, {share:.0%} of {slots} slots busy"
        )


def main() -> None:
    distributed.check_alone()
    method, source = choosing.method(CHOOSING), loading.required(WORKDIR)
    asks = None if INPUT.value == "-" else read(Path(INPUT.value))
    if asks is None:
        inputs.check_open()
    if OUTPUT.value != "-":
        check_output(Path(OUTPUT.value))
    trained = devices.spread(loading.load(source, loading.step(STEP.value), DTYPE.value), MESH.value)
    writing.check_finite(trained)
    book = Book()
    if asks is None:
        requests, capacity = incoming(trained, book), trained.model.config.length
    else:
        requests = [asked(trained, ask) for ask in asks]
        capacity = max(len(request.prompt) + request.length - 1 for request in requests)
    responses = serve(
        trained.model, trained.params, requests, capacity=CAPACITY.value or capacity, slots=SLOTS.value, method=method,
        stop=trained.stop, banned=trained.banned, prefix=trained.prefix,
    )  # fmt: skip
    begin = time.perf_counter()
    with output() as book.out:
        for response in responses:
            book.answer(trained, response)
    print(book.summary(time.perf_counter() - begin, SLOTS.value), file=sys.stderr)


def read(path: Path) -> list[Ask]:
    """What the lines of a file ask for; raises ValueError if it cannot be read, or one of them is wrong."""
    lines = inputs.lines(path, "prompt")
    whole = JSON.value if JSON.value is not None else path.suffix == ".jsonl"
    return [parse(f"{path}, line {number}", number, line, whole) for number, line in enumerate(lines, start=1)]


def parse(origin: str, number: int, line: bytes, whole: bool) -> Ask:
    """What a line asks for, an object where it is one as a `whole`; raises ValueError naming `origin`."""
    content = inputs.spelt(origin, number, line)
    fields = _fields(origin, content) if whole else {"prompt": content}
    seed, sample = (SEED.value, number - 1) if "seed" not in fields else (fields["seed"], 0)
    key = jax.random.fold_in(jax.random.key(seed), sample)
    return Ask(origin, fields.get("id", number), fields["prompt"], fields.get("length", LENGTH.value), key)


def _fields(origin: str, content: str) -> dict[str, str | int]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin} is not JSON: {error}") from None
    if not isinstance(fields, dict) or "prompt" not in fields:
        raise ValueError(f'{origin} must be an object with a prompt, such as {{"prompt": "some text"}}')
    for name, value in fields.items():
        if name not in FIELDS:
            raise ValueError(f"{origin} has a field {name!r}: there are {', '.join(FIELDS)}")
        if not isinstance(value, FIELDS[name]) or isinstance(value, bool):
            kinds = {str: "text", int: "a whole number"}.get(FIELDS[name], "text or a whole number")
            raise ValueError(f"{origin}: {name}={value!r} must be {kinds}")
    for name, least, most in (("length", 1, 1_000_000), ("seed", 0, 2**32 - 1)):
        if not least <= fields.get(name, least) <= most:
            raise ValueError(f"{origin}: {name}={fields[name]} must lie between {least} and {most}")
    return fields


def asked(trained: Trained, ask: Ask) -> Asked:
    """A request in ids; raises ValueError naming the line if the tokenizer cannot spell its prompt."""
    try:
        ids = writing.prompt_ids(trained, ask.prompt, ask.length)
        cut = writing.cut(trained, ask.prompt, ask.length)
    except ValueError as error:
        raise ValueError(f"{ask.origin}: {error}") from None
    return Asked(ids, ask.length, ask.key, ask=ask, cut=cut)


def incoming(trained: Trained, book: Book) -> Iterator[Asked | None]:
    """What the lines of standard input ask for, as they come, and None while none does; what is wrong is answered."""
    number = 0
    for line in inputs.arriving():
        if line is None:
            yield None
            continue
        number += 1
        ask = None
        try:
            ask = parse(f"line {number}", number, line, bool(JSON.value))
            request = asked(trained, ask)
        except ValueError as error:
            book.refuse(ask.id if ask else number, ask.prompt if ask else None, str(error))
        else:
            yield request


def continuation(trained: Trained, response: Response) -> str:
    """The text of what was added; what stands before it decides whether it begins with a space."""
    decoder = text.StreamDecoder(trained.tokenizer, after=response.request.prompt)
    return decoder.feed(response.tokens[response.tokens < trained.tokenizer.size]) + decoder.flush()


def check_output(path: Path) -> None:
    """Raises ValueError, before anything is loaded, if a file cannot be put there."""
    if path.is_dir():
        raise ValueError(f"--output={path} is a folder: name a file")
    if INPUT.value != "-":
        outputs.check_apart(path, INPUT.value)
    if not path.parent.is_dir():
        raise ValueError(f"--output={path} cannot be written: there is no folder {path.parent}; make it")


def output() -> contextlib.AbstractContextManager[TextIO]:
    """Where results are written."""
    if OUTPUT.value == "-":
        return contextlib.nullcontext(outputs.standard())
    return open(OUTPUT.value, "w", encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
