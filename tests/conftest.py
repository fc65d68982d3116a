"""What tests of every room share."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Compiling small models is what takes time; programs that are not optimised round no worse. The flags, which processes
# that tests start inherit, halve it again: XLA's older emitters, and each program compiled as one module. A flag that
# XLA does not know ends the process, and later releases have other flags.
OPTIMISATION = "jax_disable_most_optimizations"
jax.config.update(OPTIMISATION, True)
QUICK = (
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if jax.__version_info__ < (0, 11)
    else ""
)
os.environ.setdefault("XLA_FLAGS", QUICK)  # XLA_FLAGS=--xla_cpu_use_fusion_emitters=true tests as users compile

# Shells start background jobs with SIGINT ignored, and what tests start would inherit that and never see Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Forks for each list of arguments before JAX starts, so that imports are paid once and each script still ends as it
# would by itself: with its own exit code, flags and streams.
FORKS = """
import gc, json, os, runpy, sys
from experiments import command, recipe, writing
requests = json.load(sys.stdin)
gc.freeze()
for index, arguments in enumerate(requests):
    child = os.fork()
    if not child:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{sys.argv[1]}/{index}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(f"{sys.argv[1]}/{index}.code", "w") as file:
        file.write(str(code))
else:
    sys.exit()
sys.argv = arguments
if arguments[0].endswith(".py"):
    runpy.run_path(arguments[0], run_name="__main__")
else:
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
"""

TINY = """
from experiments.experiment import Experiment
from transformer.data import Data, Tokenizer
from transformer.models import Attention, ModelConfig, Stack
from transformer.training import Optimizer, Training

def get_config():
    return Experiment(
        model=ModelConfig(
            vocab=300, width=8, length=16, decoder=Stack(depth=1, attention=Attention(heads=2), dropout=0.1)
        ),
        data=Data(path={path!r}, length=16, validation=0.05, split="tail", tokenizer=Tokenizer(vocab=280)),
        training=Training(
            steps=12, batch_size=8, accumulation=2, ema=0.9, evaluate_every=6, checkpoint_every=3, log_every=2,
            optimizer=Optimizer(learning_rate=0.01, warmup=2),
        ),
        prompts=("the", "one", "two"),
    ).mutable()
"""


@pytest.fixture
def optimised():
    """For tests of what the compiler makes of a program; all others have it do as little as it can."""
    jax.config.update(OPTIMISATION, False)
    yield
    jax.config.update(OPTIMISATION, True)


@pytest.fixture(scope="module", autouse=True)
def few_maps():
    """Compiled programs map memory, a process may have 65,530 such maps on Linux, and one more ends it."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """Where every process that tests start keeps what it compiles, which is not where the user's own do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="session")
def environment(compiled):
    """`environment(devices)`, for scripts: so many CPU devices, quick to compile, and nothing compiled twice.

    None leaves their number to the script.
    """
    kept = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}

    def make(devices: int | None) -> dict[str, str]:
        several = "" if devices is None else f" --xla_force_host_platform_device_count={devices}"
        xla = f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0{several}"
        flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla, "PYTHONPATH": str(ROOT)}
        threads = {"PJRT_NPROC": "16"}  # several devices on few cores would wait for each other for ever
        return {**os.environ, **kept, **flags, **threads}

    return make


@pytest.fixture(scope="session")
def script(environment):
    """`script("experiments.train", "--flag=1")` runs a module or a file from the root and returns what it did."""

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *([program] if program.endswith(".py") else ["-m", program]), *arguments]
        options = {"capture_output": True, "text": True, "timeout": 300, "cwd": ROOT, "env": environment(1)}
        return subprocess.run(command, **options)

    return run


@pytest.fixture(scope="session")
def scripts(environment, tmp_path_factory):
    """`scripts([["experiments.train", "--flag=1"], ["file.py"]])` runs one after the other, as `script` does."""

    def run(requests: list[list[str]], devices: int | None = 1) -> list[subprocess.CompletedProcess]:
        folder = tmp_path_factory.mktemp("streams")
        command = [sys.executable, "-c", FORKS, str(folder)]
        options = {"capture_output": True, "text": True, "timeout": 600, "cwd": ROOT, "env": environment(devices)}
        driver = subprocess.run(command, input=json.dumps(requests), **options)
        assert driver.returncode == 0, driver.stderr

        def result(index: int, arguments: list[str]) -> subprocess.CompletedProcess:
            code, out, err = ((folder / f"{index}.{name}").read_text() for name in ("code", "out", "err"))
            return subprocess.CompletedProcess(arguments, int(code), out, err)

        return [result(index, arguments) for index, arguments in enumerate(requests)]

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> pathlib.Path:
    """A folder with `text.txt`, about 6 kB in English letters, and `recipe.py`, a model that learns it in seconds."""
    folder = tmp_path_factory.mktemp("tiny")
    chooser, words = (
        random.Random(0),
        ("the", "one", "two", "three", "of", "a", "text", "that", "goes", "on", "and", "with", "words"),
    )
    (folder / "text.txt").write_text(" ".join(chooser.choice(words) for _ in range(1500)))
    (folder / "recipe.py").write_text(TINY.format(path=str(folder / "text.txt")))
    return folder


@pytest.fixture(scope="session")
def trained(script, tiny) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
    """The working directory of one run of the tiny recipe, which nobody writes to, and the process that made it."""
    workdir = tiny / "trained"
    process = script("experiments.train", f"--config={tiny / 'recipe.py'}", f"--workdir={workdir}")
    assert process.returncode == 0, process.stderr
    return workdir, process


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of corpora and published files named by TRANSFORMER_DATA, or beside the repository; else skips."""
    named = os.environ.get("TRANSFORMER_DATA")
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: name one that holds the data in TRANSFORMER_DATA")
    return folder
