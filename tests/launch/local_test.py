"""Processes on this machine, most of them shells: what is promised is exit codes, output, and that nothing is left."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from launch import FINAL, LOST, STOPPED, STOPPED_CODE
from launch.processes import Group
from launch.sweep import Run
from tests.conftest import ROOT
from transformer.training import exits, metrics

LOCAL = (sys.executable, "-m", "launch.local")
OPTIONS = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}


def run(*arguments, timeout=60, **environment):
    return subprocess.run([*LOCAL, *arguments], timeout=timeout, env=os.environ | environment, **OPTIONS)


def alive(pid):
    """Whether a process runs; one that has ended may still be listed until its parent asks for its exit code."""
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except FileNotFoundError:
        return False


def pids(folder):
    return [int(path.read_text()) for path in folder.glob("*.pid")]


def test_every_process_knows_its_number_and_has_a_log(tmp_path):
    line = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS"; echo "$XLA_FLAGS" >&2'
    process = run("--processes=3", "--devices=2", f"--logs={tmp_path}", "--", "sh", "-c", line, XLA_FLAGS="--a=b")
    assert (process.returncode, process.stderr) == (0, "")
    logs = [(tmp_path / f"process-{index}.log").read_text() for index in range(3)]
    (address,) = {re.search(r"127\.0\.0\.1:\d+", log)[0] for log in logs}
    for index, log in enumerate(logs):
        xla = "--a=b --xla_force_host_platform_device_count=2"
        assert log.splitlines() == [f"{index} of 3 at {address}", xla]
    merged = sorted(line for line in process.stdout.splitlines() if line.startswith("["))
    assert merged == sorted(f"[{index}] {line}" for index, log in enumerate(logs) for line in log.splitlines())


def test_one_process_is_not_told_of_others(tmp_path):
    process = run(f"--logs={tmp_path}", "--", "sh", "-c", 'echo "alone${JAX_NUM_PROCESSES-}"')
    assert "[0] alone\n" in process.stdout


def test_arguments_arrive_as_they_are(tmp_path, awkward):
    code = "import sys; sys.stdout.write(repr(tuple(sys.argv[1:])))"
    process = run(f"--logs={tmp_path}", "--", "python", "-c", code, *awkward, PYTHONIOENCODING="utf-8")
    assert (tmp_path / "process-0.log").read_text() == repr(awkward)
    assert process.returncode == 0


def test_the_first_failure_is_shown_and_ends_the_others(tmp_path):
    # The second ends only when it is killed, and has a child in the background.
    line = f"""
        echo $$ > {tmp_path}/$JAX_PROCESS_ID.pid
        case $JAX_PROCESS_ID in
            0) while [ ! -e {tmp_path}/1.child.pid ]; do sleep 0.02; done; echo "some trouble"; exit 7 ;;
            *) trap "" TERM; sleep 100 & echo $! > {tmp_path}/1.child.pid; wait; while :; do sleep 1; done ;;
        esac
    """
    process = run("--processes=2", "--grace=0.5", f"--logs={tmp_path}", "--", "sh", "-c", line)
    assert process.returncode == 7
    said = r"process 0 failed with exit code 7 after \d+ s; its last lines:\n    some trouble\n"
    assert re.fullmatch(said, process.stderr)
    assert len(pids(tmp_path)) == 3 and not any(map(alive, pids(tmp_path)))


def test_a_run_that_fails_is_started_anew_and_a_mistake_is_not(tmp_path):
    line = f"echo x >> {tmp_path}/starts; [ $(wc -l < {tmp_path}/starts) = 3 ] || kill -9 $$"
    process = run("--restarts=4", f"--logs={tmp_path}", "--", "sh", "-c", line)
    assert process.returncode == 0
    assert (tmp_path / "starts").read_text() == "x\n" * 3
    assert re.findall(r"exit code (\d+) .*; restart (\d) of 4;", process.stderr) == [("137", "1"), ("137", "2")]
    assert run("--restarts=1", f"--logs={tmp_path}", "--", "sh", "-c", "exit 5").stderr.count("exit code 5") == 2
    process = run("--restarts=4", f"--logs={tmp_path}", "--", "sh", "-c", "exit 2")
    assert process.returncode == 2 and process.stderr.count("failed") == 1


@pytest.mark.parametrize(
    ("number", "name", "times"),
    [(signal.SIGTERM, "TERM", 1), (signal.SIGINT, "INT", 2), (signal.SIGHUP, "TERM", 1), (signal.SIGUSR1, "TERM", 1)],
)
def test_signals_reach_all_and_no_restart_follows(tmp_path, number, name, times):
    line = f"""
        seen=0
        trap 'seen=$((seen + 1)); echo seen $seen; [ $seen != {times} ] || exit 0' {name}
        echo ready; while :; do sleep 0.1; done
    """
    arguments = ("--processes=2", "--restarts=3", f"--logs={tmp_path}", "--", "sh", "-c", line)
    with subprocess.Popen([*LOCAL, *arguments], **OPTIONS) as process:
        for _ in range(2):
            while "ready" not in process.stdout.readline():
                pass
        for count in range(times):
            process.send_signal(number)
            if count + 1 < times:
                assert {process.stdout.readline() for _ in range(2)} == {f"[{index}] seen 1\n" for index in (0, 1)}
        rest = process.stdout.read()
        assert process.wait(timeout=30) == 0
    assert rest.count(f"seen {times}") == 2


def test_a_sweep_runs_all_as_many_at_once_as_asked_and_goes_on_after_a_failure(tmp_path):
    line = f"""
        mkdir -p "$1"; touch {tmp_path}/$$.on; ls {tmp_path}/*.on | wc -l > "$1/together"
        sleep 0.4; rm {tmp_path}/$$.on
        case $1 in *width=16,seed=1) exit 3 ;; esac
    """
    arguments = ("--sweep=model.width=8,16", "--seeds=2", f"--logs={tmp_path / 'logs'}", "--at_once=2")
    process = run(
        *arguments, "--", "sh", "-c", 'set -- "${1#--workdir=}"' + line, "sh", f"--workdir={tmp_path / 'runs'}"
    )
    assert process.returncode == 3
    assert process.stderr.endswith("1 of 4 runs failed: width=16,seed=1\n")
    names = {f"width={width},seed={seed}" for width in (8, 16) for seed in (0, 1)}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names
    assert {path.name for path in (tmp_path / "logs").iterdir()} == names
    together = [int((path / "together").read_text()) for path in (tmp_path / "runs").iterdir()]
    assert max(together) == 2


def stopped(local, folder, names):
    """What a supervisor of these runs returns that is stopped in the first one."""
    line = f'trap "exit ${STOPPED_CODE}" TERM; touch {folder}/ready; while :; do sleep 0.1; done'
    received = deque()

    def stop():
        while not (folder / "ready").exists():
            time.sleep(0.02)
        received.append(signal.SIGTERM)

    threading.Thread(target=stop).start()
    runs = [Run(name, ("sh", "-c", line)) for name in names]
    return local.Supervisor(runs, "sh", folder, [], received).run()


def test_a_sweep_that_is_stopped_names_what_is_not_done(tmp_path, imported_local, capsys):
    assert stopped(imported_local, tmp_path, ["a", "b", "c"]) == STOPPED
    assert capsys.readouterr().err == "3 of 3 runs are not done: b, c, a\n"


@pytest.mark.parametrize("asked", [0, 75])
def test_a_run_that_is_stopped_ends_as_one_without_a_launcher(tmp_path, imported_local, monkeypatch, asked):
    monkeypatch.setenv(STOPPED_CODE, str(asked))
    assert stopped(imported_local, tmp_path, [""]) == asked


def ended(folder, *lines):
    """The group of shells, each with its line, once all have ended; and what they showed."""
    shown = []
    variables = [{"LINE": line, "FOLDER": str(folder)} for line in lines]
    group = Group(("sh", "-c", 'eval "$LINE"'), variables, folder, lambda *line: shown.append(line), 5.0)
    while not group.poll():
        time.sleep(0.02)
    return group, shown


def test_of_several_that_fail_at_one_time_the_one_to_blame_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Group, "poll", lambda self, poll=Group.poll: time.sleep(1) or poll(self))
    assert ended(tmp_path, "kill -ABRT $$", "exit 69", "kill -KILL $$", "exit 1", "exit 2")[0].failure[:2] == (4, 2)
    assert ended(tmp_path, "kill -ABRT $$", "exit 69", "kill -KILL $$", "exit 1")[0].failure[:2] == (3, 1)
    assert ended(tmp_path, "kill -ABRT $$", "exit 69", "kill -KILL $$")[0].failure[:2] == (2, 137)
    stopped, _ = ended(tmp_path, f"exit {STOPPED}", "exit 0")
    assert stopped.stopped and stopped.failure is None


def test_a_process_in_the_background_does_not_hold_up_the_end(tmp_path):
    begin = time.monotonic()
    group, shown = ended(tmp_path, "setsid sleep 30 & echo $! > $FOLDER/1.pid; echo said")
    assert time.monotonic() - begin < 15 and shown == [(0, "said")] and group.failure is None
    os.kill(*pids(tmp_path), signal.SIGKILL)


def test_a_log_that_cannot_be_written_is_said_once_and_holds_nothing_up(tmp_path):
    (tmp_path / "process-0.log").symlink_to("/dev/full")
    group, shown = ended(tmp_path, "seq 50000")  # more than a pipe holds
    said = f"launch: {tmp_path / 'process-0.log'} is not written any more (No space left on device)"
    assert shown == [(0, said), *((0, str(number)) for number in range(1, 50001))]
    assert group.failure is None


def test_a_log_that_cannot_be_opened_starts_nothing(tmp_path):
    (tmp_path / "process-1.log").mkdir()
    with pytest.raises(IsADirectoryError):
        ended(tmp_path, "touch $FOLDER/ran", "touch $FOLDER/ran")
    assert not (tmp_path / "ran").exists()


def test_gpus_are_shared_equally(imported_local):
    share = imported_local._share
    gpus = ["0", "1", "4", "5"]
    assert [share(gpus, 2, index) for index in (0, 1)] == ["0,1", "4,5"]
    assert share(gpus, 1, 0) is share([], 3, 0) is None
    with pytest.raises(ValueError, match="4 GPUs cannot be shared equally among 3 processes"):
        share(gpus, 3, 0)


def test_gpus_are_found_where_there_are_some(imported_local, tmp_path):
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert imported_local._gpus({}, tmp_path) == ["0", "2", "10"]
    assert imported_local._gpus({"CUDA_VISIBLE_DEVICES": "3,1"}, tmp_path) == ["3", "1"]
    assert imported_local._gpus({"JAX_PLATFORMS": "cpu"}, tmp_path) == []
    environment = imported_local.environment(1, 2, 99, None, "3")
    assert environment["CUDA_VISIBLE_DEVICES"] == "3" and "JAX_PLATFORMS" not in environment


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the command is missing: put it after --, such as -- python -m experiments.train"),
        (("--", "no-such-program"), "there is no program 'no-such-program'"),
        (("--processes=0", "--", "true"), "--processes=0"),
        (("--sweep=model.width=1", "--", "true"), "a sweep needs --workdir=DIR"),
        (("--logs=/proc/no", "--", "true"), "/proc/no"),
    ],
)
def test_a_mistake_is_one_line(arguments, said):
    process = run(*arguments)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def train(folder, tiny, environment, *overrides):
    """Two processes train the tiny recipe in `folder / "two"`."""
    words = ("experiments.train", f"--config={tiny / 'recipe.py'}", f"--workdir={folder / 'two'}", *overrides)
    two = ("--processes=2", "--devices=1", f"--logs={folder / 'logs'}", "--", "python", "-m", *words)
    return subprocess.run([*LOCAL, *two], env=environment, timeout=500, **OPTIONS)


def test_two_processes_train_and_the_first_speaks_for_both(tiny, tmp_path, environment):
    steps = ("--config.training.steps=2", "--config.training.ema=None", "--config.prompts=()")
    process = train(tmp_path, tiny, environment(1), *steps, "--config.training.accumulation=1")
    assert process.returncode == 0, process.stderr
    assert "[0] model: 3,448 parameters on 2 cpu device(s)\n" in process.stdout
    assert "[0] validation: " in process.stdout and "[1] validation" not in process.stdout
    (row,) = metrics.read(tmp_path / "two")
    assert row["step"] == 2 and row["validation_loss"] > 0
    assert (tmp_path / "two" / "checkpoints" / "2").is_dir()


@pytest.mark.slow  # half a minute
def test_two_processes_train_as_one_does(tiny, tmp_path, environment):
    # With dropout each device has a key of its own under `pmap` alone; so this is the same however many there are.
    same = ("--config.training.steps=6", "--config.prompts=('the',)")
    assert train(tmp_path, tiny, environment(1), *same).returncode == 0
    alone = ("experiments.train", f"--config={tiny / 'recipe.py'}", f"--workdir={tmp_path / 'one'}", *same)
    one = subprocess.run([*LOCAL[:2], *alone], env=environment(2), timeout=300, **OPTIONS)
    assert one.returncode == 0, one.stderr
    rows = [metrics.read(tmp_path / name) for name in ("one", "two")]
    assert [row["step"] for row in rows[0]] == [2, 3, 4, 6]
    for first, second in zip(*rows, strict=True):
        for name in ("loss", "grad_norm", "param_norm"):  # sums over devices are taken in another order
            assert first[name] == pytest.approx(second[name], rel=1e-5), (first["step"], name)


def test_what_is_not_started_again_is_what_would_end_so_again():
    assert FINAL == (exits.MISTAKE, exits.NOT_FINITE, exits.NOT_SAVED)
    assert (STOPPED_CODE, STOPPED, LOST[0]) == (exits.STOPPED_CODE, exits.STOPPED, exits.LOST)
