"""How fast this repository is beside its peers and beside what the machine can do, in one table.

    python -m experiments.benchmarks.run [--only=train-char,decode] [--match="batch 8"] [--device=gpu] [--results=FILE]

Method. Every program, ours and the peers', runs in a process of its own, so that memory and threads are its own; only
one works at a time, and torch gets as many threads as JAX, one a core. On CPUs all of them keep the memory that they
free (`experiments.memory`), as our scripts do; torch's steps gain from it too. Each is called until it is compiled and
warm, then they take turns, `--repeats` timings each, another one first every time; quick programs are called several
times in a timing. Every call is waited for. Medians count, and the ratio is the median of the fastest peer of the same
precision over ours: above 1 ours is faster. All get the same shapes, parameters' types, optimizer (AdamW, its numbers,
its clipping) and policy: "bfloat16" multiplies in bfloat16 and trains parameters kept in float32; decoding keeps them
in bfloat16. No program has dropout.

Ceilings are measured first, so nothing else should run on the machine: the fastest square matrix product in each
precision, and reading memory, in JAX and in torch. A share of the first counts the operations of the formula in
`models.ledger`, causal, not those that a program repeats or wastes; decoding's share of the second counts each matrix
read once a token. Memory is the most that a process had resident, less what its libraries take before they are given
anything to do, so compiling is in it; on GPUs it is what the library took there. All programs of a case are in memory
at once: where less than a tenth of it is left, a line says so, and `--programs` chooses fewer.

Peers are the extra `oracle`'s: PyTorch, in the compact GPT of `torch_gpt.py`, as it is and through `torch.compile`,
and `transformers`; beside them functions of Flax, JAX and NumPy. What is missing or fails is named and left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from rich.console import Console

from experiments import command
from experiments.benchmarks import (
    attention,
    capture,
    ceilings,
    contest,
    corpus,
    decoding,
    loss,
    report,
    saving,
    serving,
    training,
)
from experiments.benchmarks.contest import Case, Result, Settings
from transformer.ops.products import cores

WORKLOADS: dict[str, Callable[[Settings], list[Case]]] = {
    "train-char": training.char,
    "train-gpt2": training.gpt2,
    "decode": decoding.decode,
    "prefill": decoding.prefill,
    "beam": decoding.beam,
    "speculative": serving.speculative,
    "serve": serving.serve,
    "attention": attention.cases,
    "loss": loss.cases,
    "compile": training.first_step,
    "checkpoint": saving.checkpoint,
    "pretrained": saving.pretrained,
    "pipeline": corpus.pipeline,
    "tokenizer": corpus.tokenizer,
    "inspection": capture.cases,
}

_DEVICE = flags.DEFINE_enum("device", "cpu", ("cpu", "gpu"), "Where everything runs.")
_ONLY = flags.DEFINE_list("only", None, "Workloads, with commas between; default: all.")
_MATCH = flags.DEFINE_string("match", "", "Only cases whose name has this in it, such as 'gradient, 8,192'.")
_PROGRAMS = flags.DEFINE_string(
    "programs", "", "Only programs whose whole name fits this regular expression, such as 'ours, unrolled|torch.*'."
)
_PRECISIONS = flags.DEFINE_list("precisions", None, "Classes; default: float32,bfloat16, on GPUs bfloat16.")
_LIST = flags.DEFINE_boolean("list", False, "Print the names of the workloads, and end.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timings of each program, of which the median counts.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", None, "Also write everything to this file, as JSON.")
_TINY = flags.DEFINE_boolean("tiny", False, "Sizes at which numbers mean nothing: whether everything runs.")


def main() -> int:
    """Measures ceilings, then the workloads; prints the table; returns 1 if a program of ours failed."""
    if _LIST.value:
        for name, function in WORKLOADS.items():
            print(f"{name:12} {function.__doc__.splitlines()[0]}")
        return 0
    settings = _settings()
    chosen = _cases(_names(_ONLY.value), _MATCH.value, _PROGRAMS.value, settings)
    _check_results(_RESULTS.value)
    _prepare_environment(settings)
    measured = [_run(case, settings) for case in ceilings.cases(settings)]
    limits = ceilings.best(measured)
    measured += [_run(case, settings) for case in chosen]
    rows = [row for case, results in measured for row in report.rows(case, results, limits)]
    absent = list(dict.fromkeys(line for case, results in measured for line in report.left_out(case, results)))
    about = _about(settings, limits)
    Console(width=None if sys.stdout.isatty() else 200).print(report.table(rows))
    print("\n".join([f"{name}: {value}" for name, value in about.items()] + absent))
    if _RESULTS.value:
        content = {**about, "repeats": _REPEATS.value, "rows": rows, "left_out": absent}
        pathlib.Path(_RESULTS.value).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return int(any(result.program.ours and "failed" in result.failure for _, results in measured for result in results))


def _cases(names: list[str], part: str, programs: str, settings: Settings) -> list[Case]:
    """What is to be measured, of the cases and programs of these workloads."""
    cases = [case for name in names for case in WORKLOADS[name](settings)]
    if not (chosen := [case for case in cases if part in case.name]):
        known = ", ".join(repr(name) for name in dict.fromkeys(case.name for case in cases))
        raise ValueError(f"--match={part!r} is in the name of no case: of these workloads there are {known}")
    if not programs:
        return chosen
    try:
        fits = re.compile(programs).fullmatch
    except re.error as error:
        raise ValueError(f"--programs={programs!r} is no regular expression: {error}") from None
    taken = [dataclasses.replace(case, programs=[p for p in case.programs if fits(p.name)]) for case in chosen]
    if not (taken := [case for case in taken if case.programs]):
        known = ", ".join(repr(name) for name in dict.fromkeys(p.name for case in chosen for p in case.programs))
        raise ValueError(f"--programs={programs!r} fits the name of no program: of these cases there are {known}")
    return taken


def _names(wanted: list[str] | None) -> list[str]:
    names = list(dict.fromkeys(wanted or WORKLOADS))
    for name in names:
        if name not in WORKLOADS:
            near = difflib.get_close_matches(name, WORKLOADS, cutoff=0.4) or WORKLOADS
            raise ValueError(f"--only={name!r} is no workload: choose among {', '.join(near)}, or see --list")
    return names


def _settings() -> Settings:
    known = contest.PRECISIONS
    wanted = tuple(_PRECISIONS.value or (known if _DEVICE.value == "cpu" else ("bfloat16",)))
    if not set(wanted) <= set(known):
        raise ValueError(f"--precisions={','.join(wanted)} cannot work: choose among {', '.join(known)}")
    return Settings(_DEVICE.value, _TINY.value, wanted)


def _check_results(path: str | None) -> None:
    if path is None:
        return
    if pathlib.Path(path).is_dir():
        raise ValueError(f"--results={path!r} is a folder: name a file")
    if not pathlib.Path(path).parent.is_dir():
        raise ValueError(f"--results={path!r} is in no folder that exists: make it first")


def _prepare_environment(settings: Settings) -> None:
    """What the processes of all programs inherit."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share the accelerator's memory
    if settings.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        return
    import jax

    try:
        jax.devices("gpu")
    except RuntimeError:
        raise ValueError(
            "--device='gpu', but JAX finds none here: use --device=cpu, or install the extra cuda"
        ) from None


def _run(case: Case, settings: Settings) -> tuple[Case, list[Result]]:
    return case, contest.run(case, settings, _REPEATS.value, lambda line: print(line, file=sys.stderr, flush=True))


def _about(settings: Settings, limits: dict[str, float]) -> dict[str, Any]:
    """What the numbers are numbers of."""
    libraries = [name for name in ("jax", "flax", "torch", "transformers") if _installed(name)]
    return {
        "machine": f"{_processor()}, {cores()} cores, {platform.system()}",
        "device": settings.device,
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries),
        "ceilings": ", ".join(_ceiling(name, rate) for name, rate in limits.items()),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "experiments.benchmarks.run", *sys.argv[1:]]),
    }


def _processor() -> str:
    """Its name, or where none is told the kind of its instructions."""
    told = pathlib.Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.machine())


def _commit() -> str:
    """The commit of this code, marked where files differ from it; "unknown" outside git."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        folder = pathlib.Path(__file__).parent
        return subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _ceiling(name: str, rate: float) -> str:
    return f"{name} {rate / 1e9:,.1f} {'GB' if name == 'memory' else 'GFLOP'}/s"


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    command.run(main)
