"""What the flags choose, seen in what is written."""

import json
import re

import jax
import jax.numpy as jnp

from transformer import decoding, interop, models, text
from transformer.models import Attention, Init, Mlp, ModelConfig, Norm, Position, Readout, Stack

GENERATE = "experiments.generate"


def test_flags_choose_the_method_the_step_the_seed_and_how_much(scripts, lettered):
    asked = {
        "greedy": ["--greedy", "--next=10"],
        "one": ["--top_k=1", "--samples=2"],
        "nucleus": ["--top_p=0.0001"],
        "likely": ["--min_p=1.0"],
        "cold": ["--temperature=0.00001"],
        "drawn": ["--seed=1", "--samples=2"],
        "short": ["--greedy", "--length=1"],
        "older": ["--greedy", "--step=1"],
        "varied": ["--greedy", "--repetition_penalty=1e6"],
        "drafted": ["--greedy", f"--draft={lettered.workdir}", "--proposals=3"],
    }
    start = [GENERATE, f"--workdir={lettered.workdir}", "--prompt=on and", "--length=12"]
    processes = dict(zip(asked, scripts([[*start, *each] for each in asked.values()]), strict=True))
    for process in processes.values():
        assert process.returncode == 0, process.stderr
        assert process.stdout.startswith("on and")
    assert processes.pop("drafted").stdout == processes["cold"].stdout
    assert all(process.stderr == "" for process in processes.values())
    out = {name: process.stdout for name, process in processes.items()}
    assert out["nucleus"] == out["likely"] == out["cold"]
    assert out["one"] == 2 * out["cold"]
    assert out["greedy"].startswith(out["cold"])
    probabilities = [float(number) for number in re.findall(r"│ ([01]\.\d{4}) +│", out["greedy"])]
    assert len(probabilities) == 10 and probabilities == sorted(probabilities, reverse=True)
    assert "likeliest next tokens after 'on and'" in " ".join(out["greedy"].split())
    first, second = out["drawn"].split("on and")[1:]
    assert first != second
    assert [len(out[name]) for name in ("cold", "short")] == [6 + 12 + 1, 6 + 1 + 1]
    assert out["cold"].startswith(out["short"].removesuffix("\n"))
    assert len({out["cold"], out["older"], out["varied"], f"on and{first}"}) == 4


def test_mistakes_are_one_line(scripts, made, lettered, tmp_path):
    here, letters = f"--workdir={made.workdir}", f"--workdir={lettered.workdir}"
    mistakes = {
        "--top_k and --top_p exclude each other": [here, "--top_k=3", "--top_p=0.9"],
        "--min_p and --greedy exclude each other": [here, "--greedy", "--min_p=0.1"],
        "--greedy and --temperature exclude each other": [here, "--greedy", "--temperature=0.5"],
        "--greedy writes the same each time: leave out --samples=2": [here, "--greedy", "--samples=2"],
        "--proposals are those of --draft": [here, "--proposals=3"],
        "k=0": [here, "--top_k=0"],
        "p=1.5": [here, "--top_p=1.5"],
        "temperature=0": [here, "--temperature=0"],
        "--length=0": [here, "--length=0"],
        "choose one of [3, 2, 1], 'latest' or 'best'": [here, "--step=7"],
        "'É' (U+00C9), which is none of the 15 characters": [letters, "--prompt=É"],
        "prompt is empty": [letters],
        "length=33 leaves no room for a prompt": [letters, "--prompt=on", "--length=33"],
        "absent' does not exist, and is no name of a model": [f"--workdir={tmp_path / 'absent'}"],
        "--workdir is missing": [],
        "unexpected argument 'words'": [here, "words"],
    }
    for said, process in zip(mistakes, scripts([[GENERATE, *each] for each in mistakes.values()]), strict=True):
        assert process.returncode == 2, (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line


def test_an_encoder_decoder_reads_the_prompt_and_writes_a_target(scripts, tiny, pretrained, tmp_path):
    tokenizer = text.load(pretrained)
    stack = Stack(
        depth=1,
        attention=Attention(2, head_width=8, scale=1.0),
        mlp=Mlp(24, "relu", gated=False),
        position=Position("relative"),
    )
    init = Init(scale=0.5, embedding=1.0)
    config = ModelConfig(280, 16, encoder=stack, decoder=stack, readout=Readout(scale=True), init=init)
    model = models.Transformer(config)
    ids = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), ids, source=ids)["params"]
    interop.save(tmp_path / "t5", model, params, tokenizer)
    stop = json.loads((tmp_path / "t5" / "config.json").read_text())["decoder_start_token_id"]
    source = tokenizer.encode("one two")[None]
    longest = 32 + 50  # tokens of a translation: its source's, rounded up, and some more
    expected = decoding.generate(model, params, [[stop]], length=longest, source=source, stop=tokenizer.end)[0]
    (tmp_path / "in.txt").write_text("one two\n")
    here = f"--workdir={tmp_path / 't5'}"
    process, translated = scripts(
        [
            [GENERATE, here, "--prompt=one two", "--greedy", "--length=10", "--next=3"],
            ["experiments.translate", here, f"--input={tmp_path / 'in.txt'}", "--beams=1"],
        ]
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"one two\n{tokenizer.decode(expected[:10])}\n")
    assert process.stdout.count("│") == 3 * 3
    assert translated.returncode == 0, translated.stderr
    assert translated.stdout == tokenizer.decode(expected).replace("\n", " ") + "\n"


def test_what_cannot_write_is_refused_before_anything_is_printed(scripts, pretrained, tmp_path):
    norm = Norm("layer", bias=True)
    stack = Stack(
        1, Attention(2, bias=True, output_bias=True), Mlp(24, "gelu", gated=False, bias=True), norm, "post",
        Position("learned"), embedding_norm=True,
    )  # fmt: skip
    model = models.Transformer(ModelConfig(280, 16, encoder=stack, token_types=2, length=16))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    interop.save(tmp_path / "bert", model, params, text.load(pretrained))
    for arguments, said in (
        ([f"--workdir={tmp_path / 'bert'}", "--prompt=one"], "has an encoder alone and a tokenizer without a mask"),
        (
            [f"--workdir={tmp_path / 'bert'}", "--prompt=one", "--greedy", "--length=3", "--draft=x"],
            "which fills in masks: leave out --length and --greedy and --draft",
        ),
        ([f"--workdir={pretrained}", "--prompt=one", "--step=best"], "--step=best chooses among checkpoints"),
    ):
        (process,) = scripts([[GENERATE, *arguments]])
        assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
        assert said in process.stderr
