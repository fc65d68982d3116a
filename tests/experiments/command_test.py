"""Scripts run in a process of their own, because exit codes and stderr are what is promised."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder, body, *arguments, check="lambda name: None", words="", imports="os, signal, sys", **environment):
    """Run `main` with this body as a script would; the flags --config.a and --recipe are defined."""
    script = folder / "script.py"
    lines = [
        f"import {imports}",
        # Shells ignore Ctrl-C in what they run in the background, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from absl import flags",
        "from experiments import command",
        "A = flags.DEFINE_integer('config.a', 1, 'A number.')",
        "class Recipe(flags.ArgumentParser):",
        "    def parse(self, path): return open(path).read()",
        "flags.DEFINE(Recipe(), 'recipe', None, 'A file that is read while flags are parsed.')",
        f"def main({words}):",
        textwrap.indent(body, "    "),
        f"command.run(main, {check}, words={bool(words)})",
    ]
    script.write_text("\n".join(lines))
    command = [sys.executable, str(script), *arguments]
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": folder}
    return subprocess.run(command, env=os.environ | environment, **options)


def error_line(process):
    """The only line on stderr, once it is known to be the only one."""
    assert process.returncode == 2, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_flags_reach_main_and_its_result_is_the_exit_code(tmp_path):
    process = run(tmp_path, "print(A.value)\nreturn A.value - 3", "--config.a=3")
    assert (process.returncode, process.stdout, process.stderr) == (0, "3\n", "")
    assert run(tmp_path, "return 7").returncode == 7


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("ValueError('steps=0 cannot work:\\n  use 1 or more')", "error: steps=0 cannot work: use 1 or more"),
        ("ImportError('needs the wandb extra')", "error: needs the wandb extra"),
        (
            "FileNotFoundError(2, 'No such file or directory', 'there')",
            "error: [Errno 2] No such file or directory: 'there'",
        ),
        ("ValueError()", "error: ValueError"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(tmp_path, raised, said):
    assert error_line(run(tmp_path, f"raise {raised}")) == said


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("config.a=3", "--config.a=3"),
        ("-", "--flag=value"),
        ("word", "'word'"),
        ("--config.b=3", "config.b"),
        ("--config.a=three", "config.a"),
    ],
)
def test_what_is_no_flag_is_refused_before_main_runs(tmp_path, argument, hint):
    process = run(tmp_path, "print('ran')", argument)
    assert hint in error_line(process)
    assert "ran" not in process.stdout


def test_names_may_be_written_with_dashes_but_not_behind_the_end_of_flags(tmp_path):
    body = "print(flags.FLAGS.two_words, words)"
    imports = "os, signal, sys\nfrom absl import flags\nflags.DEFINE_integer('two_words', 0, 'A number.')"
    process = run(tmp_path, body, "--two-words=3", "--", "--two-words=4", words="words", imports=imports)
    assert (process.returncode, process.stdout) == (0, "3 ['--two-words=4']\n"), process.stderr


def test_what_is_no_flag_reaches_a_script_that_takes_words(tmp_path):
    process = run(
        tmp_path, "print(A.value, words)", "--config.a=3", "--", "sh", "--config.a=4", "config.a=5", words="words"
    )
    assert process.stdout == "3 ['sh', '--config.a=4', 'config.a=5']\n", process.stderr
    assert run(tmp_path, "print(words)", words="words").stdout == "[]\n"


@pytest.mark.parametrize("path", ["absent.py", "."])
def test_a_file_that_a_flag_cannot_read_is_a_mistake(tmp_path, path):
    assert path in error_line(run(tmp_path, "pass", f"--recipe={path}"))


def test_names_are_checked_before_any_flag_is_parsed(tmp_path):
    check = "lambda name: None if name == 'config.a' else int(name)"
    assert run(tmp_path, "pass", "--config.a=2", check=check).returncode == 0
    assert "'config.b'" in error_line(run(tmp_path, "pass", "-config.b=2", "--recipe=absent.py", check=check))


@pytest.mark.parametrize("arguments", [("--traceback",), ("--config.a=2", "--traceback")])
def test_traceback_shows_where(tmp_path, arguments):
    process = run(tmp_path, "raise ValueError('here')", *arguments)
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "ValueError: here" in process.stderr


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path):
    process = run(tmp_path, "raise RuntimeError('a fault')")
    assert process.returncode == 1
    assert "Traceback" in process.stderr


def test_interruption_is_quiet(tmp_path):
    process = run(tmp_path, f"os.kill(os.getpid(), {signal.SIGINT.value})\nsignal.pause()")
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")


COMPILES = """
jax.monitoring.register_event_listener(lambda name, **_: print(name.split("/")[-1]) if "/cache_" in name else None)
print(jax.jit(lambda x: jax.numpy.sin(x) * 3)(A.value))
"""


@pytest.fixture
def compile_something(tmp_path, monkeypatch):
    """Runs a script that compiles; returns how often it did, how often it need not, and the files kept by default."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def start(**environment):
        settings = {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        settings |= {"JAX_PLATFORMS": "cpu"} | environment
        process = run(tmp_path, COMPILES, "--config.a=0", imports="jax, os, signal, sys", **settings)
        assert (process.returncode, process.stderr) == (0, "") and process.stdout.endswith("0.0\n")
        lines = process.stdout.splitlines()
        kept = sorted((tmp_path / "transformer-research" / "compiled").glob("*-cache"))
        return lines.count("cache_misses"), lines.count("cache_hits"), kept

    return start


def test_a_second_start_finds_what_the_first_compiled(tmp_path, compile_something):
    misses, hits, kept = compile_something()
    assert misses == len(kept) > 0 and hits == 0
    assert kept[0].parent.stat().st_mode & 0o077 == 0
    kept[0].with_name(kept[0].name.removesuffix("cache") + "atime").unlink()  # as where the disk was full
    kept[0].write_bytes(b"")
    assert compile_something() == (1, misses - 1, kept)
    assert compile_something() == (0, misses, kept)


def test_whoever_says_so_keeps_it_elsewhere_or_not_at_all(tmp_path, compile_something):
    assert compile_something(JAX_ENABLE_COMPILATION_CACHE="0") == (0, 0, [])
    misses, _, kept = compile_something(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other"))
    assert kept == [] and len(list((tmp_path / "other").glob("*-cache"))) == misses > 0


def test_a_folder_that_cannot_be_written_stops_no_script(tmp_path, compile_something):
    (tmp_path / "transformer-research").touch()
    assert compile_something() == (0, 0, [])


def test_an_address_is_no_working_directory(tmp_path):
    (tmp_path / "flag.py").write_text("from absl import flags\nflags.DEFINE_string('workdir', None, 'A folder.')")
    process = run(tmp_path, "print('ran')", "--workdir=gs://bucket/a", imports="os, signal, sys, flag")
    assert error_line(process).startswith("error: --workdir=gs://bucket/a is no folder: mount the bucket (gcsfuse)")


def test_an_end_by_a_signal_has_the_code_that_a_launcher_asks_for(tmp_path):
    body = "raise command.Interrupted(signal.SIGTERM, 'at step 3')"
    assert run(tmp_path, body).returncode == 128 + signal.SIGTERM
    process = run(tmp_path, body, TRANSFORMER_STOPPED_CODE="79")
    assert (process.returncode, process.stderr) == (79, "stopped: at step 3\n")


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path):
    process = run(tmp_path, "for n in range(100_000): print(n)", "--config.a=0")
    assert (process.returncode, process.stdout.count("\n")) == (0, 100_000)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, tmp_path / "script.py"], **pipe) as writer:
        assert writer.stdout.readline() == "0\n"
        writer.stdout.close()
        assert (writer.wait(timeout=60), writer.stderr.read()) == (128 + signal.SIGPIPE, "")
