"""A name that is no folder: fetched from the hub, found in its cache, or refused in one line within seconds."""

import errno
import pathlib
import subprocess
import sys
import time
import types

import pytest

from tests.interop import folders
from transformer import interop
from transformer.interop import hub

ROOT = pathlib.Path(__file__).resolve().parents[2]


def library(monkeypatch, *, model_info, snapshot_download) -> None:
    """Puts a library in the place of `huggingface_hub`, whether that is installed or not."""
    module = types.ModuleType("huggingface_hub")
    module.HfApi = lambda: types.SimpleNamespace(model_info=model_info)
    module.errors = types.SimpleNamespace(GatedRepoError=Gated)
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


class Gated(Exception):
    """A licence is not accepted."""


def unreachable(*arguments, **options):
    raise ConnectionError("no\nnetwork")


def nothing_here(words: str):
    return pytest.raises(FileNotFoundError, match=words)


@pytest.mark.parametrize(
    "name", ["a/b/c", "../gpt2", ".hidden/model", "a b", "https://huggingface.co/gpt2", "/no/such", "~/x"]
)
def test_what_is_no_name_is_not_asked_for(monkeypatch, name):
    library(monkeypatch, model_info=pytest.fail, snapshot_download=pytest.fail)
    with nothing_here("does not exist, and is no name of a model on the hub"):
        interop.load(name)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with nothing_here(r"folder='owner/model' does not exist; .* pip install 'transformer-research\[hub\]'") as error:
        interop.load("owner/model")
    assert "\n" not in str(error.value)


def test_a_model_that_is_there_is_fetched_and_loaded(monkeypatch, tmp_path):
    folder = folders.write(tmp_path / "snapshot", "gpt2")
    asked = []
    library(
        monkeypatch,
        model_info=lambda name, timeout: asked.append((name, timeout)),
        snapshot_download=lambda name, allow_patterns, **options: asked.append(allow_patterns) or str(folder),
    )
    monkeypatch.chdir(tmp_path)
    assert interop.load("owner/gpt-2.0_x")[0].config.width == 24
    assert asked[0] == ("owner/gpt-2.0_x", hub.SECONDS)
    assert {"*.json", "*.safetensors"} <= set(asked[1])
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked[1])


def test_without_a_network_the_cache_is_asked(monkeypatch, tmp_path):
    folder = folders.write(tmp_path / "snapshot", "gpt2")

    def snapshot_download(name, local_files_only=False, **options):
        return str(folder) if local_files_only else unreachable()

    library(monkeypatch, model_info=unreachable, snapshot_download=snapshot_download)
    assert interop.resolve("gpt2") == folder


def test_what_is_neither_on_the_hub_nor_in_the_cache_is_refused_in_one_line(monkeypatch):
    library(monkeypatch, model_info=unreachable, snapshot_download=unreachable)
    with nothing_here(r"folder='gpt2' does not exist here, and .* \(ConnectionError\): check the name and") as error:
        interop.load("gpt2")
    assert "\n" not in str(error.value)


def test_a_licence_that_is_not_accepted_is_said_to_be_missing(monkeypatch):
    def closed(*arguments, **options):
        raise Gated

    library(monkeypatch, model_info=closed, snapshot_download=pytest.fail)
    with pytest.raises(ValueError, match="folder='owner/model': accept its licence on the Hugging Face hub and log in"):
        interop.load("owner/model")


def test_a_full_disk_is_not_taken_for_a_network_that_is_missing(monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    library(monkeypatch, model_info=lambda *_, **__: None, snapshot_download=full)
    with pytest.raises(OSError, match="No space left"):
        interop.load("owner/model")


def test_a_model_without_a_config_is_refused(monkeypatch, tmp_path):
    library(monkeypatch, model_info=lambda *_, **__: None, snapshot_download=lambda *_, **__: str(tmp_path))
    with pytest.raises(
        ValueError, match=r"folder='gpt2' holds no config\.json on the Hugging Face hub, or .* remove it"
    ):
        interop.load("gpt2")


def test_a_folder_counts_before_a_name(monkeypatch, tmp_path):
    library(monkeypatch, model_info=pytest.fail, snapshot_download=pytest.fail)
    monkeypatch.chdir(tmp_path)
    folders.write(tmp_path / "gpt2", "gpt2")
    assert interop.resolve("gpt2") == pathlib.Path("gpt2")
    with pytest.raises(ValueError, match=r"folder='.*' holds no config\.json"):
        interop.resolve(tmp_path)
    with pytest.raises(ValueError, match=r"folder='gpt2/config\.json' is a file: name the folder"):
        interop.resolve("gpt2/config.json")


def test_the_real_library_fails_within_seconds_and_finds_its_cache(tmp_path):
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    model = tmp_path / "models--owner--cached"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0" * 40)
    folders.write(model / "snapshots" / ("0" * 40), "gpt2")
    program = (
        "from transformer.interop.hub import resolve\n"
        "print(resolve('owner/cached'))\n"
        "try:\n    resolve('owner/other')\n"
        "except FileNotFoundError as error:\n    print(error)\n"
    )
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", **closed},
    )
    assert process.returncode == 0, process.stderr
    cached, refused = process.stdout.splitlines()
    assert cached == str(model / "snapshots" / ("0" * 40))
    assert refused.startswith("folder='owner/other' does not exist here, and the Hugging Face hub did not give")
    assert time.monotonic() - start < 60  # a machine in use included; the library would try for minutes
