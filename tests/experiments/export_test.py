"""A trained run leaves as a folder that reads back as the same model."""

import json

import jax
import numpy as np

from transformer import interop, text

EXPORT = "experiments.export"


def test_a_run_and_a_folder_are_written_as_folders(scripts, made, pretrained, tmp_path):
    run, best, again = scripts(
        [
            [EXPORT, f"--workdir={made.workdir}", f"--to={tmp_path / 'refused'}"],
            [EXPORT, f"--workdir={pretrained}", f"--to={tmp_path / 'deep' / 'copy'}", "--family=mistral"],
            ["experiments.evaluate", f"--workdir={tmp_path / 'deep' / 'copy'}", f"--text={__file__}"],
        ]
    )
    # That run's blocks have no feed-forward layers, which no family leaves out.
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: no family of models has decoder.mlp=None") and run.stderr.count("\n") == 1
    assert not (tmp_path / "refused").exists()
    assert best.returncode == 0, best.stderr
    assert best.stdout.endswith(f"parameters written to {tmp_path / 'deep' / 'copy'} as mistral\n")
    assert json.loads((tmp_path / "deep" / "copy" / "config.json").read_text())["architectures"] == [
        "MistralForCausalLM"
    ]
    assert again.returncode == 0, again.stderr
    one, other = interop.load(pretrained), interop.load(tmp_path / "deep" / "copy")
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])
    assert one[2].fingerprint == other[2].fingerprint


def test_a_model_trained_here_writes_the_same_once_it_is_exported(scripts, trained, tmp_path):
    workdir, _ = trained
    writes = ["--prompt=one two", "--greedy", "--length=20"]
    process, run, folder = scripts(
        [
            [EXPORT, f"--workdir={workdir}", f"--to={tmp_path / 'out'}", "--step=12"],
            ["experiments.generate", f"--workdir={workdir}", *writes],
            ["experiments.generate", f"--workdir={tmp_path / 'out'}", *writes],
        ]
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("step 12: ") and process.stdout.endswith(" as llama\n")
    assert run.returncode == folder.returncode == 0, folder.stderr
    assert run.stdout == folder.stdout and len(run.stdout) > len("one two\n")
    model, params, tokenizer = interop.load(tmp_path / "out")
    assert model.config.decoder.depth == 1 and params["embedding"]["table"].shape == (300, 8)
    assert tokenizer.encode("one", special=True).tolist() == [
        tokenizer.opening,
        *text.load(workdir / "data").encode("one"),
    ]


def test_mistakes_are_one_line(scripts, made, pretrained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    mistakes = {
        "--to is missing": [f"--workdir={pretrained}"],
        "--workdir is missing": [f"--to={tmp_path / 'new'}"],
        "is in use: name a new or empty folder": [f"--workdir={pretrained}", f"--to={tmp_path / 'full'}"],
        "family='lama' is not known: choose one of gpt2": [
            f"--workdir={pretrained}", f"--to={tmp_path / 'new'}", "--family=lama",
        ],
        "gpt2, has no counterpart for": [f"--workdir={pretrained}", f"--to={tmp_path / 'new'}", "--family=gpt2"],
    }  # fmt: skip
    for said, process in zip(mistakes, scripts([[EXPORT, *each] for each in mistakes.values()]), strict=True):
        assert (process.returncode, process.stdout) == (2, ""), (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_a_signal_takes_away_what_is_not_finished(script, pretrained, tmp_path):
    (tmp_path / "killed.py").write_text(
        "import os, runpy, signal\n"
        "from transformer.interop import weights\n"
        "def half(path, arrays, kinds):\n"
        "    path.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "weights._write = half\n"
        "runpy.run_module('experiments.export', run_name='__main__', alter_sys=True)\n"
    )
    process = script(str(tmp_path / "killed.py"), f"--workdir={pretrained}", f"--to={tmp_path / 'out'}")
    assert (process.returncode, process.stdout, process.stderr) == (143, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["killed.py"]
