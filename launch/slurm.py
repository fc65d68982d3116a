"""Write a batch script for Slurm and submit it.

    python -m launch.slurm --nodes=2 --tasks_per_node=8 --gpus_per_task=1 --partition=gpu --time=1-00:00:00 \
        --logs=runs/big/logs -- .venv/bin/python -m experiments.train --config=... --workdir=runs/big
    python -m launch.slurm --dry-run --sweep=training.optimizer.learning_rate=1e-3,3e-4 --seeds=5 -- ...

`--dry-run` prints the script and submits nothing. The tasks of the job are the processes of one training. `--notice`
seconds before the time limit they are told to stop, save and end, and the job goes back into the queue, if need be
without them; there it goes on from its last checkpoint. A job that fails goes back too, unless a task would fail again,
as after a mistake on the command line, or has been started anew `--restarts` times, for whatever reason;
`scancel -s TERM JOB` saves and ends it for good, with exit code 79. A sweep is an array of jobs.

All output is in `LOGS/NAME-JOB.log`, each line with its task's number in front; the script is beside it. In a container
(`--container`) tasks see the folder in which the job was submitted, and `--mounts`.
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
from launch import FINAL, STOPPED, STOPPED_CODE, sweep

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
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print the script and submit nothing.")
AT_ONCE = flags.DEFINE_integer("at_once", None, "Jobs of a sweep at one time; default: any number.", lower_bound=1)
SWEEP = sweep.define()

# Slurm's ways to write a time limit, and the seconds in each of its parts.
TIMES = {
    r"(?:(\d+)-)?(\d+):(\d+):(\d+)": (86400, 3600, 60, 1),
    r"(\d+)-(\d+):(\d+)": (86400, 3600, 60),
    r"(\d+)-(\d+)": (86400, 3600),
    r"(\d+):(\d+)": (60, 1),
    r"(\d+)": (60,),
}

# The batch shell alone hears of the limit, by a signal that nothing else sends, and tells the tasks; should they not
# end, the job is taken from them. Bash runs a trap in the middle of a wait, which is then to be begun again.
#
# $SLURM_JOB_ID of one job of an array is the number of the whole array.
#
# srun ends with the largest code of its tasks, and ends them all when one fails; which code came of itself, only its
# own lines in the log say, in front of which no task's number stands.
BODY = """
export {variable}={stopped}
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
again=
timer=
trap 'again=1; scancel --signal=TERM "$job"; (sleep {patience} &> /dev/null; scontrol requeue "$job") & timer=$!' USR1
[[ -f /dev/stderr ]] && begin=$(stat --dereference --format=%s /dev/stderr)

{srun} "${{command[@]}}" &
step=$!
wait "$step"
code=$?
while kill -0 "$step" 2> /dev/null; do
    wait "$step"
    code=$?
done

[[ $timer ]] && kill "$timer"

if [[ -f /dev/stderr ]]; then
    final=$(tail --bytes=+$((begin + 1)) /dev/stderr |
        sed --quiet --regexp-extended 's/^srun: error: .*: Exited with exit code ({finals})$/\\1/p' | head --lines=1)
    code=${{final:-$code}}
fi
case $code in
    {finals}) again= ;;
    0 | {stopped}) ;;
    *) (( ${{SLURM_RESTART_COUNT:-0}} >= {restarts} )) || again=1 ;;
esac
if [[ $again ]]; then
    echo "exit code $code: back into the queue" >&2
    scontrol requeue "$job"
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
    body = BODY.format(
        srun=_srun(),
        finals="|".join(map(str, FINAL)),
        restarts=RESTARTS.value,
        variable=STOPPED_CODE,
        stopped=STOPPED,
        patience=max(NOTICE.value - 15, NOTICE.value * 3 // 4),
    )
    return "\n".join(lines) + "\n" + _commands(runs) + body


def _options(runs: Sequence[sweep.Run], logs: Path) -> list[tuple[str, str | None]]:
    """What sbatch is told, as pairs; None for an option without a value."""
    if not re.fullmatch(r"[\w.-]+", NAME.value):
        raise ValueError(f"--name={NAME.value} cannot work: use letters, digits, dots, dashes and underscores")
    if "%" in str(logs):
        raise ValueError(f"--logs={logs} cannot work: Slurm would replace what follows a %")
    _check_time()
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


def _check_time() -> None:
    limit = seconds(TIME.value) if TIME.value is not None else None
    if limit is not None and NOTICE.value >= limit:
        raise ValueError(
            f"--notice={NOTICE.value} s is not less than --time={TIME.value} ({limit} s), so that the job would stop "
            "as soon as it begins: give a smaller --notice or a larger --time"
        )


def seconds(time: str) -> int | None:
    """Of a limit as Slurm writes it; None for one without end.

    Raises:
      ValueError: if it is none.
    """
    if time.upper() in ("UNLIMITED", "INFINITE", "0"):
        return None
    for pattern, parts in TIMES.items():
        if found := re.fullmatch(pattern, time):
            return sum(int(number or 0) * part for number, part in zip(found.groups(), parts, strict=True))
    raise ValueError(
        f"--time={time} is no limit of Slurm's: give MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, "
        "DAYS-HOURS:MINUTES, DAYS-HOURS:MINUTES:SECONDS or UNLIMITED"
    )


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
    if CONTAINER.value is None and MOUNTS.value:
        raise ValueError("--mounts are of a container: name its image with --container")
    if CONTAINER.value is not None:
        here = Path.cwd()
        if re.search("[:,]", str(here)):
            raise ValueError(f"the current folder, {here}, cannot be mounted: go to one without : and , in its name")
        options.append(f"--container-image={CONTAINER.value}")
        options.append(f"--container-mounts={','.join([f'{here}:{here}', *MOUNTS.value])}")
        options.append(f"--container-workdir={here}")
    return shlex.join(["srun", *options])


if __name__ == "__main__":
    command.run(main, words=True)
