"""The page that the script writes, and the one that it serves."""

import contextlib
import dataclasses
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import loading
from tests.text import cases
from transformer import decoding, interop, models, text
from transformer.inspection.explorer import packing
from transformer.models import Attention, Mlp, ModelConfig, Norm, Position, Readout, Stack

EXPLORE = "experiments.explore"
pytestmark = pytest.mark.filterwarnings("ignore:builtin type .wig:DeprecationWarning")  # of sentencepiece's import


@pytest.fixture(scope="module")
def explore(imported):
    return imported(EXPLORE)


@pytest.fixture(scope="module")
def t5(pretrained, tmp_path_factory):
    """A folder with a small random encoder-decoder."""
    folder = tmp_path_factory.mktemp("t5")
    attention, mlp = Attention(2, head_width=8, scale=1.0), Mlp(24, "relu", gated=False)
    stack = Stack(depth=1, attention=attention, mlp=mlp, position=Position("relative"))
    config = ModelConfig(280, 16, encoder=stack, decoder=stack, readout=Readout(scale=True))
    interop.save(folder / "model", *random(config), text.load(pretrained))
    return folder / "model"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a small random encoder, which has a token for what is masked."""
    norm, folder = Norm("layer", bias=True), tmp_path_factory.mktemp("bert")
    attention, mlp = Attention(2, bias=True, output_bias=True), Mlp(24, "gelu", gated=False, bias=True)
    stack = Stack(1, attention, mlp, norm, "post", Position("learned"), embedding_norm=True)
    words = cases.wordpiece()
    config = ModelConfig(words.get_vocab_size(), 16, encoder=stack, token_types=2, length=16)
    interop.save(folder / "model", *random(config), text.load(cases.words(folder / "words", **cases.ROLES)))
    return folder / "model"


def random(config):
    """A model and parameters that are drawn without compiling its initialisation."""
    model, ids, draw = models.Transformer(config), jnp.zeros((1, 1), jnp.int32), np.random.default_rng(0)
    source = ids if config.encoder is not None and config.decoder is not None else None
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, source=source)["params"]
    return model, jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.5, leaf.shape), leaf.dtype), shapes)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def shown(side):
    return [token["text"] for token in side["tokens"]]


@pytest.mark.slow
def test_pages_of_all_three_kinds_of_models(scripts, made, t5, bert, tmp_path):
    asked = {
        "run": [f"--workdir={made.workdir}", "--text=one </script><!--", "--text=two é", "--step=1"],
        "wrote": [f"--workdir={t5}", "--source=one two"],
        "masked": [f"--workdir={bert}", "--text=the [MASK] sat"],
    }
    asked = {name: [EXPLORE, *arguments, f"--output={tmp_path / name}"] for name, arguments in asked.items()}
    (tmp_path / "run").write_text("an older page")
    pages = {}
    for name, process in zip(asked, scripts(list(asked.values())), strict=True):
        assert (process.returncode, process.stderr) == (0, ""), process.stderr
        assert re.fullmatch(rf"{tmp_path / name}: 0\.\d\d MB\n", process.stdout)
        pages[name] = data_of((tmp_path / name).read_text(encoding="utf-8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(asked)
    assert (tmp_path / "run").stat().st_mode & 0o777 == (tmp_path / "wrote").stat().st_mode & 0o777 != 0o600

    one, two = pages["run"]["texts"]
    assert pages["run"]["origin"] == f"{made.workdir}, step 1" and pages["run"]["served"] is None
    assert "".join(shown(one["sides"]["decoder"])) == "<|endoftext|>one </script><!--"
    special, *others = one["sides"]["decoder"]["tokens"]
    assert special["special"] and not any("special" in token for token in others)
    assert [token["hex"] for token in two["sides"]["decoder"]["tokens"] if "hex" in token] == ["c3", "a9"]
    logits = models.Transformer(made.experiment.model).apply(
        {"params": made.params[1]}, jnp.asarray([[token["id"] for token in one["sides"]["decoder"]["tokens"]]])
    )
    found = packing.unpack(one["next"]["all"][str(one["position"])])
    np.testing.assert_allclose(found, logits[0, -1], rtol=1e-4, atol=1e-4)

    model, params, tokenizer = interop.load(t5)
    start = json.loads((t5 / "config.json").read_text())["decoder_start_token_id"]
    source = tokenizer.encode("one two")[None]
    written = decoding.generate(model, params, [[start]], length=64, source=source, stop=tokenizer.end)[0].tolist()
    written = written[: written.index(tokenizer.end)] if tokenizer.end in written else written
    (wrote,) = pages["wrote"]["texts"]
    assert [token["id"] for token in wrote["sides"]["decoder"]["tokens"]] == [start, *written]
    assert wrote["text"] == tokenizer.decode(written) and wrote["source"] == "one two"
    assert [part["name"] for part in wrote["attentions"]] == ["encoder", "decoder", "decoder/cross"]

    (masked,) = pages["masked"]["texts"]
    tokens = shown(masked["sides"]["encoder"])
    predicts = {name: page["model"]["predicts"] for name, page in pages.items()}
    assert predicts == {"run": True, "wrote": True, "masked": False}  # the encoder has no head for it
    assert tokens[0] == "[CLS]" and tokens[masked["position"]] == "[MASK]" and tokens[-1] == "[SEP]"
    assert set(masked["next"]["all"]) == {str(place) for place in range(len(tokens))}


def test_flags_choose_what_is_kept(scripts, pretrained, tmp_path):
    flags = ["--layers=1", "--detail=1,0", "--budget=0.05", "--text=one two three of a text"]
    (tmp_path / "page").touch(mode=0o600)
    (tmp_path / "link").symlink_to("page")
    (process,) = scripts([[EXPLORE, f"--workdir={pretrained}", *flags, f"--output={tmp_path / 'link'}"]])
    assert (process.returncode, process.stderr) == (0, "")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "page").stat().st_mode & 0o777 == 0o600
    data = data_of((tmp_path / "page").read_text())
    (part,) = data["texts"][0]["attentions"]
    assert part["layers"] == [1] and list(part["detail"]) == ["0"]
    assert packing.size({**data, "limits": []}) <= 50_000
    assert data["limits"] == process.stdout.splitlines()[1:]
    assert "Exact queries, keys and values are kept for layer 0 of decoder: choose others with" in data["limits"][0]


def test_mistakes_are_one_line(scripts, made, lettered, pretrained, t5, tmp_path):
    here, letters, both = (f"--workdir={path}" for path in (made.workdir, lettered.workdir, t5))
    page, one = f"--output={tmp_path / 'page.html'}", "--text=one"
    (tmp_path / "page.html").write_text("an older page")
    mistakes = {
        "give --output=PAGE.html to write a page, or --serve to serve one": [here, one],
        "or --serve to serve one": [here, one, page, "--serve"],
        "--text is missing": [here, page],
        "--workdir is missing": [one, page],
        "texts has 4 entries: give 1 to 3": [here, page, *[one] * 4],
        "--layers=0,x names no layers": [here, one, page, "--layers=0,x"],
        "--detail=-1 names no layers": [here, one, page, "--detail=-1"],
        "--layers=٣ names no layers": [here, one, page, "--layers=٣"],
        "--budget=nan is no number of megabytes": [here, one, page, "--budget=nan"],
        "--output= cannot be written (it is there, and no file)": [here, one, "--output="],
        "layers=(3,) cannot work: choose among layers 0 to 0": [here, one, page, "--layers=3"],
        "has 601 tokens; the explorer shows 1 to 512: shorten it": [here, page, f"--text={'☃' * 200}"],
        "has 33 tokens; the explorer shows 1 to 32": [letters, page, f"--text={'on ' * 11}"],
        "'É' (U+00C9), which is none of the": [letters, page, "--text=É"],
        "--source is for an encoder-decoder": [here, one, page, "--source=two"],
        "which needs one for each text": [both, one, page],
        "--text is given 1 times and --source 2": [both, one, page, "--source=a", "--source=b"],
        "absent/page cannot be written (No such file or directory)": [here, one, f"--output={tmp_path}/absent/page"],
        "cannot be written (it is there, and no file)": [here, one, f"--output={tmp_path}"],
        "cannot be written (File name too long)": [here, one, f"--output={tmp_path}/{'x' * 300}"],
        "absent' does not exist": [f"--workdir={tmp_path / 'absent'}", one, page],
        "--step=best chooses among checkpoints": [f"--workdir={pretrained}", one, page, "--step=best"],
        "unexpected argument 'words'": [here, one, page, "words"],
    }
    for said, process in zip(mistakes, scripts([[EXPLORE, *each] for each in mistakes.values()]), strict=True):
        assert (process.returncode, process.stdout) == (2, ""), (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "an older page"


def ask(url, name="", request=None):
    """Status and answer of the server behind `url`."""
    host, path = re.fullmatch(r"http://([\d.:]+)(/.+/)", url).groups()
    connection = http.client.HTTPConnection(host, timeout=60)
    method, headers = ("GET", {}) if request is None else ("POST", {"Content-Type": "application/json"})
    connection.request(method, path + name, None if request is None else json.dumps(request), headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body if request is None else json.loads(body)


def test_a_served_model_reads_texts_and_takes_changes(environment, pretrained):
    command = [sys.executable, "-m", EXPLORE, f"--workdir={pretrained}", "--text=one two", "--serve"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(1)}
    with subprocess.Popen(command, **options) as process:
        try:
            url = re.fullmatch(
                r"open (http://127\.0\.0\.1:\d+/[\w-]+/) \(Ctrl-C ends it\)\n", process.stdout.readline()
            )[1]
            check_served(url)
            threading.Thread(target=ask_in_vain, args=[url], daemon=True).start()
            time.sleep(0.3)  # now it is at work on a text of another length, which it compiles first
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "")


def ask_in_vain(url):
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        ask(url, "texts", {"texts": ["one two three " * 5]})


def check_served(url):
    status, page = ask(url)
    data = data_of(page)
    assert status == 200 and data["served"]["max_texts"] == 3 and data["served"]["max_characters"] == 4000
    assert data["texts"][0]["text"] == "one two" and url.endswith(data["served"]["base"])
    status, data = ask(url, "texts", {"texts": ["three of"]})
    assert status == 200 and data["texts"][0]["text"] == "three of"
    zero = {"attention": "decoder", "layer": 1, "head": 0, "position": None, "action": "zero"}
    status, answer = ask(url, "intervene", {"text": "three of", "patches": [zero], "position": -1})
    effect = packing.unpack(data["texts"][0]["attentions"][0]["ablation"])[1, 0]
    assert status == 200 and answer["kl"] == pytest.approx(effect, rel=1e-2, abs=1e-6) and effect > 0
    assert ask(url, "detail", {"text": "three of", "attention": "decoder", "layer": 1})[0] == 200
    status, answer = ask(url, "texts", {"texts": ["☃" * 200]})
    assert status == 400 and "has 600 tokens; the explorer shows 1 to 512" in answer["error"]


FOLDERS = {
    "wordpiece": cases.words,
    "byte-level": cases.pair,
    "t5": cases.t5,
    "llama": cases.llama,
    "gemma": cases.gemma,
}
MADE = {
    "bytes": lambda: text.Bytes(),
    "characters": lambda: text.Characters.train(["the cat"], end=True),
    "bpe": lambda: text.BPE.train(cases.CORPUS, 300),
}


@pytest.mark.parametrize("kind", [*MADE, *FOLDERS])
def test_tokens_are_shown_as_they_stand_in_a_text(explore, tmp_path, kind):
    if kind in ("t5", "llama", "gemma"):
        pytest.importorskip("sentencepiece")
    tokenizer = MADE[kind]() if kind in MADE else text.load(FOLDERS[kind](tmp_path / "folder"))
    spell = explore.speller(tokenizer)
    for string in ("the cat sat on the mat", "low lowest, two ☃ é"):
        ids = tokenizer.encode(string, special=True).tolist()
        tokens = [spell(token) for token in ids]
        parts = [bytes.fromhex(t.hex) if t.hex else t.text.encode() for t in tokens if not t.special]
        assert b"".join(parts).decode().strip() == tokenizer.decode(ids).strip()
        assert [token.special for token in tokens] == [
            tokenizer.decode([token]) == "" and not tokenizer.shown([token]) for token in ids
        ]
    assert spell(tokenizer.size) == explore.Token(f"<{tokenizer.size}>", special=True)
    if tokenizer.end is not None:
        assert spell(tokenizer.end).special and spell(tokenizer.end).text in ("<|endoftext|>", "[SEP]", "</s>", "<eos>")


def test_a_target_that_is_given_is_read(explore, t5):
    trained = loading.load(t5)
    reading = explore.reader(trained)("three of", "one two")
    assert reading.tokens == (trained.start, *trained.tokenizer.encode("three of").tolist())
    assert (reading.text, reading.source_text, list(reading.source)) == ("three of", "one two", trained.ids("one two"))
    with pytest.raises(ValueError, match="source is missing"):
        explore.reader(trained)("three of", None)


def test_the_target_of_a_tokenizer_that_spells_the_source_alone_is_left_to_the_model(explore, t5, tmp_path):
    pytest.importorskip("sentencepiece")
    trained = dataclasses.replace(loading.load(t5), tokenizer=text.load(cases.marian(tmp_path / "marian")))
    read = explore.reader(trained)
    with pytest.raises(ValueError, match="spells the source language alone: leave out the text"):
        read("le chat", "the cat")
    reading = read("", "the cat")
    assert reading.source_text == "the cat" and reading.tokens[0] == trained.start
    unopened = dataclasses.replace(trained, start=None, tokenizer=text.Characters.train(["the cat"]))
    with pytest.raises(ValueError, match="names no decoder_start_token_id"):
        explore.reader(unopened)("", "the cat")


@pytest.mark.parametrize(
    ("kind", "length", "written"), [("relative", 16, 64), ("learned", 16, 15), ("learned", 99, 64)]
)
def test_a_target_is_no_longer_than_a_learned_table(explore, t5, monkeypatch, kind, length, written):
    trained, asked = loading.load(t5), []

    def generate(*_, length, **options):
        asked.append(length)
        return jnp.full((1, length), 5)

    monkeypatch.setattr(decoding, "generate", generate)
    config = trained.model.config
    stack = dataclasses.replace(config.decoder, position=Position(kind))
    model = models.Transformer(dataclasses.replace(config, decoder=stack, length=length))
    reading = explore.reader(dataclasses.replace(trained, model=model))("", "one two")
    assert asked == [written] and len(reading.tokens) == 1 + written
