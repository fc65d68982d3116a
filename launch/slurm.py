"""Write a batch script for Slurm and submit it.

    python -m launch.slurm --nodes=2 --tasks_per_node=8 --gpus_per_task=1 --partition=gpu --time=1-00:00:00 \
        --logs=runs/big/logs -- .venv/bin/python -m experiments.train --config=... --workdir=runs/big
    python -m launch.slurm --dry-run --sweep=training.optimizer.learning_rate=1e-3,3e-4 --seeds=5 -- ...

`--dry-run` prints the script and submits nothing. The tasks of the job are the processes of one training. `--notice`
seconds before the time limit they are told to stop, save and end, and the job goes back into the queue; there it goes
on from its last checkpoint. A job that fails goes back too, unless it would fail again, as after a mistake on the
command line, or has been started anew `--restarts` times, for whatever reason; `scancel -s TERM JOB` saves and ends it
for good. A sweep is an array of jobs.

All output is in `LOGS/NAME-JOB.log`, each line with its task's number in front; the script is beside it.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import command
from launch import FINAL, sweep

NAME = flags.DEFINE_string("name", "train", "The job's.")
NODES = flags.DEFINE_integer("nodes", 1, "Machines.", lower_bound=1)
TASKS = flags.DEFINE_integer("tasks_per_node", 1, "Processes on each machine.", lower_bound=1)
GPUS = flags.DEFINE_integer("gpus_per_task", 0, "GPUs of each process.", lower_bound=0)
CPUS = flags.DEFINE_integer("cpus_per_task", None, "CPUs of each process; default: the cluster's.", lower_bound=1)
MEMORY = flags.DEFINE_string("memory", None, "Of each machine, such as 200G; default: the cluster's.")
PARTITION = flags.DEFINE_string("partition", None, "Default: the cluster's.")
ACCOUNT = flags.DEFINE_string("account", None, "Default: the cluster's.")
TIME = flags.DEFINE_string("time", None, "The limit, such as 1-00:00:00; default: the partition's.")
NOTICE = flags.DEFINE_integer("notice", 120, "Seconds before the limit to save and go back into the queue.", 1)
RESTARTS = flags.DEFINE_integer("restarts", 3, "Starts after which a job that fails is not started anew.", 0)
OPTION = flags.DEFINE_multi_string("option", [], "One more option of sbatch, such as --exclusive.")
MODULES = flags.DEFINE_list("modules", [], "Environment modules to load.")
CONTAINER = flags.DEFINE_string("container", None, "The image that the tasks run in, by the Pyxis plugin.")
MOUNTS = flags.DEFINE_list("mounts", [], "Folders that the container sees, such as /data:/data.")
LOGS = flags.DEFINE_string("logs", "logs", "The folder of the script and of what the job prints.")
DRY_RUN = flags.DEFINE_boolean("dry-run", False, "Print the script and submit nothing.")
AT_ONCE = flags.DEFINE_integer("at_once", None, "Jobs of a sweep at one time; default: any number.", lower_bound=1)
SWEEP = sweep.define()

# The batch shell alone hears of the limit, by a signal that nothing else sends, and tells the tasks. Bash runs a trap
# in the middle of a wait, which is then to be begun again.
BODY = """
again=
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1

{srun} "${{command[@]}}" &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2> /dev/null; do
    wait "$step"
    code=$?
done

case $code in
    0 | {final}) ;;
    *) (( ${{SLURM_RESTART_COUNT:-0}} >= {restarts} )) || again=1 ;;
esac
if [[ $again ]]; then
    echo "exit code $code: back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def main(words: list[str]) -> None:
    runs, logs = sweep.runs(SWEEP, words), Path(LOGS.value).absolute()
    text = script(runs, logs)
    if DRY_RUN.value:
        print(text, end="")
        return
    if shutil.which("sbatch") is None:
        raise ValueError("there is no sbatch: submit from a machine of the cluster, or print the script with --dry-run")
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{NAME.value}.sbatch"
    path.write_text(text)
    submitted = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True)
    if submitted.returncode:
        raise ValueError(f"sbatch refuses {path}: {submitted.stderr.strip()}")
    print(f"job {submitted.stdout.strip().split(';')[0]}: {path}")


def script(runs: Sequence[sweep.Run], logs: Path) -> str:
    """The batch script of some runs, as the flags say.

    Raises:
      ValueError: if a value cannot stand in it.
    """
    lines = ["#!/bin/bash", *(_directive(name, value) for name, value in _options(runs, logs))]
    lines += [f"#SBATCH {_one_line(option)}" for option in OPTION.value]
    lines += ["", *(f"module load {shlex.quote(module)}" for module in MODULES.value)]
    final = " | ".join(map(str, FINAL))
    return "\n".join(lines) + "\n" + _commands(runs) + BODY.format(srun=_srun(), final=final, restarts=RESTARTS.value)


def _options(runs: Sequence[sweep.Run], logs: Path) -> list[tuple[str, str | None]]:
    """What sbatch is told, as pairs; None for an option without a value."""
    if not re.fullmatch(r"[\w.-]+", NAME.value):
        raise ValueError(f"--name={NAME.value} cannot work: use letters, digits, dots, dashes and underscores")
    if "%" in str(logs):
        raise ValueError(f"--logs={logs} cannot work: Slurm would replace what follows a %")
    array = len(runs) > 1
    options: dict[str, object] = {
        "job-name": NAME.value,
        "nodes": NODES.value,
        "ntasks-per-node": TASKS.value,
        "gpus-per-task": GPUS.value or None,
        "cpus-per-task": CPUS.value,
        "mem": MEMORY.value,
        "partition": PARTITION.value,
        "account": ACCOUNT.value,
        "time": TIME.value,
        "chdir": Path.cwd(),
        "output": logs / ("%x-%A_%a.log" if array else "%x-%j.log"),
        "signal": f"B:USR1@{NOTICE.value}",
        "array": f"0-{len(runs) - 1}" + (f"%{AT_ONCE.value}" if AT_ONCE.value else "") if array else None,
    }
    given = [(name, str(value)) for name, value in options.items() if value is not None]
    return [*given, ("open-mode", "append"), ("requeue", None)]


def _directive(name: str, value: str | None) -> str:
    return f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(_one_line(value))}")


def _one_line(value: str) -> str:
    if "\n" in value:
        raise ValueError(f"{value!r} cannot stand in a batch script: write it in one line")
    return value


def _commands(runs: Sequence[sweep.Run]) -> str:
    """Sets `command`, in an array that of its task."""
    if len(runs) == 1:
        return f"command=({shlex.join(runs[0].command)})\n"
    cases = [f"    {index}) command=({shlex.join(run.command)}) ;;" for index, run in enumerate(runs)]
    return "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]) + "\n"


def _srun() -> str:
    options = ["--kill-on-bad-exit=1", "--label"]
    if CPUS.value is not None:
        options.append(f"--cpus-per-task={CPUS.value}")  # since 22.05 not taken over from the job
    if CONTAINER.value is not None:
        options.append(f"--container-image={CONTAINER.value}")
    if MOUNTS.value:
        if CONTAINER.value is None:
            raise ValueError("--mounts are of a container: name its image with --container")
        options.append(f"--container-mounts={','.join(MOUNTS.value)}")
    return shlex.join(["srun", *options])


if __name__ == "__main__":
    command.run(main, words=True)
