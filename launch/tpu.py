"""Write the commands that ask Google Cloud for a TPU slice and run a training on all its hosts; nothing is run.

    python -m launch.tpu --name=big --zone=us-east5-a --accelerator=v5p-256 \
        --setup="git clone URL transformer-research && pip install './transformer-research[tpu]' && gcsfuse NAME runs" \
        -- python -m experiments.train --config=... --workdir=../runs/big > big.sh

The accelerator is called as gcloud does; of v4 and v5p the number counts cores, two in a chip. `--slices` asks for
several slices that train as one. The command runs in `--folder` of every host, where `--setup`, run in the home folder,
is to bring the code and a folder that all hosts share, as here a bucket. A run that fails is started anew up to
`--restarts` times, unless it would fail again, as after a mistake on the command line. The runs of a sweep come one
after the other.

The script ends at the first command that fails. Hosts train whether or not it is connected to them: the command under
`Wait` may be given again, and shows the log from the beginning. Nothing is deleted; the last line says how.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from absl import flags

from experiments import command
from launch import DETECT, FINAL, sweep

NAME = flags.DEFINE_string("name", "train", "Of the request and of what it gives.")
ZONE = flags.DEFINE_string("zone", None, "Where, such as us-east5-a.")
PROJECT = flags.DEFINE_string("project", None, "Default: that of gcloud's configuration.")
ACCELERATOR = flags.DEFINE_string("accelerator", None, "As gcloud calls it, such as v5p-256 or v5litepod-16.")
RUNTIME = flags.DEFINE_string("runtime", None, "The software of the hosts; default: what suits the accelerator.")
SLICES = flags.DEFINE_integer("slices", 1, "Slices that train as one.", lower_bound=1)
SPOT = flags.DEFINE_boolean("spot", False, "Ask for what may be taken away.")
RESERVED = flags.DEFINE_boolean("reserved", False, "Ask for what is reserved.")
FOLDER = flags.DEFINE_string("folder", "transformer-research", "Of every host, below the home folder.")
SETUP = flags.DEFINE_string("setup", None, "What is run on every host first.")
RESTARTS = flags.DEFINE_integer("restarts", 3, "How often a run that failed is started anew.", lower_bound=0)
SWEEP = sweep.define()

RUNTIMES = {  # https://cloud.google.com/tpu/docs/runtimes
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}

PAUSE = 30  # seconds between two starts, in which all hosts lose the one before
LOOKS = 2  # seconds between looks whether a run has ended
POLL = """\
# Wait until it is there.
until
    state=$({describe})
    echo "$state"
    [[ $state == ACTIVE ]]
do
    case $state in FAILED | SUSPENDED) exit 1 ;; esac
    sleep 60
done"""


def main(words: list[str]) -> None:
    print(commands(sweep.runs(SWEEP, words)), end="")


def commands(runs: Sequence[sweep.Run]) -> str:
    """A shell script of what to do, in order.

    Raises:
      ValueError: if something is missing, or the accelerator is not known.
    """
    if not ZONE.value:
        raise ValueError("--zone is missing: say where, such as --zone=us-east5-a")
    if SPOT.value and RESERVED.value:
        raise ValueError("--spot and --reserved exclude each other: give one of them")
    where = [f"--zone={ZONE.value}"] + ([f"--project={PROJECT.value}"] if PROJECT.value else [])
    name = NAME.value
    wanted = [f"--accelerator-type={ACCELERATOR.value}", f"--runtime-version={_runtime()}"]
    wanted += [f"--node-id={name}"] if SLICES.value == 1 else [f"--node-count={SLICES.value}"]
    wanted += ["--spot"] * SPOT.value + ["--reserved"] * RESERVED.value
    parts = [
        "#!/bin/bash",
        "set -e",
        "# Ask; the answer comes when there is room.",
        _gcloud("create", name, *where, *wanted),
        POLL.format(describe=_gcloud("describe", name, *where, "--format=value(state.state)")),
    ]
    if SETUP.value:
        parts += ["# Prepare every host.", _everywhere(name, where, SETUP.value)]
    for run in runs:
        of = f": {run.name}" if run.name else ""
        goes_on = f" || echo {shlex.quote(f'{run.name} failed')} >&2" if run.name else ""
        parts += [f"# Train{of}.", _everywhere(name, where, _start(run))]
        parts += [f"# Wait{of}.", _everywhere(name, where, _wait(run)) + goes_on]
    parts += [
        "# Give it back, once nothing on it is wanted any more:",
        "# " + _gcloud("delete", name, *where, "--force"),
    ]
    return "\n".join(parts) + "\n"


def _runtime() -> str:
    if not ACCELERATOR.value:
        raise ValueError("--accelerator is missing: name one as gcloud does, such as --accelerator=v5p-256")
    kind, dash, count = ACCELERATOR.value.partition("-")
    if kind not in RUNTIMES or not dash or not count.isdecimal():
        known = ", ".join(RUNTIMES)
        raise ValueError(f"--accelerator={ACCELERATOR.value} is not known: give KIND-NUMBER, KIND one of {known}")
    return RUNTIMES[kind] if RUNTIME.value is None else RUNTIME.value


def _start(run: sweep.Run) -> str:
    """Starts a run on a host, where it goes on when the connection ends."""
    log, code = (f"{run.name or NAME.value}.{end}" for end in ("log", "code"))
    words = shlex.join(["bash", "-c", f"{_repeated(run.command)}; echo $code > {shlex.quote(code)}"])
    log, code = shlex.quote(log), shlex.quote(code)
    return f"cd {shlex.quote(FOLDER.value)} && rm -f {code} && {{ nohup {words} > {log} 2>&1 < /dev/null & }}"


def _wait(run: sweep.Run) -> str:
    """Shows the log until the run has ended, and ends with its exit code."""
    log, code = (shlex.quote(f"{run.name or NAME.value}.{end}") for end in ("log", "code"))
    return (
        f"cd {shlex.quote(FOLDER.value)} && {{ tail -n +1 -f {log} & while [ ! -s {code} ]; do sleep {LOOKS}; done; "
        f'sleep 1; kill $!; exit "$(cat {code})"; }}'
    )


def _repeated(words: Sequence[str]) -> str:
    """A shell's words that run a command until it works, or would fail again, or has failed too often; sets `code`."""
    final = "|".join(map(str, (0, *FINAL)))
    return (
        f"export {DETECT}=1; for start in $(seq 0 {RESTARTS.value}); do [ $start = 0 ] || sleep {PAUSE}; "
        f"{shlex.join(words)}; code=$?; case $code in {final}) break;; esac; done"
    )


def _everywhere(name: str, where: Sequence[str], line: str) -> str:
    return _gcloud("ssh", name, *where, "--node=all", "--worker=all", "--batch-size=all", f"--command={line}")


def _gcloud(verb: str, *words: str) -> str:
    return shlex.join(["gcloud", "compute", "tpus", "queued-resources", verb, *words])


if __name__ == "__main__":
    command.run(main, words=True)
