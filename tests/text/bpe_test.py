import collections
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from tests.text import cases
from transformer import text

CORPUS = ["the cat sat on the mat, the cat's hat", "low lower lowest, new newer newest\n" * 3, "Grüße, Grüße"]


@pytest.fixture(scope="module")
def gpt2(shared_data):
    folder = shared_data / "gpt2"
    if not (folder / "merges.txt").is_file():
        pytest.skip(f"no file {folder / 'merges.txt'}")
    return text.load(folder)


@pytest.mark.parametrize(
    ("string", "ids"),
    [
        ("Hello world", [15496, 995]),
        (" the", [262]),
        ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11]),
        ("!", [0]),
        ("\n", [198]),
        ("", []),
    ],
)
def test_published_ids(gpt2, string, ids):
    assert gpt2.encode(string).tolist() == ids
    assert gpt2.decode(ids) == string


def test_published_table(gpt2):
    assert (gpt2.size, gpt2.end, gpt2.kind) == (50257, 50256, "bpe")
    assert gpt2.spellings[50256] == b"<|endoftext|>"
    assert 50256 not in gpt2.encode("<|endoftext|>")
    assert gpt2.decode(range(50257), keep_end=True).endswith("<|endoftext|>")


def test_published_files_become_one_that_loads_alike(gpt2, tmp_path):
    gpt2.save(tmp_path)
    loaded = text.load(tmp_path)
    assert (loaded.fingerprint, loaded.size, loaded.end) == (gpt2.fingerprint, 50257, 50256)
    string = "Hello, I'm <|endoftext|> 日本\r\n"
    np.testing.assert_array_equal(loaded.encode(string), gpt2.encode(string))


@pytest.mark.parametrize("vocab", [257, 258, 280])
def test_training_reaches_the_size(vocab):
    tokenizer = text.BPE.train(CORPUS, vocab)
    assert (tokenizer.size, tokenizer.end) == (vocab, vocab - 1)
    assert sorted(tokenizer.spellings[:256]) == [bytes([byte]) for byte in range(256)]


def test_the_first_merge_is_the_most_frequent_pair():
    words = ["xy"] * 9 + ["yz"] * 5 + ["zx"] * 3
    tokenizer = text.BPE.train([" ".join(words)], 258)
    pairs = collections.Counter(pair for word in words for pair in zip(" " + word, word, strict=False))
    # The pattern puts each space before its word, and the first word has none.
    pairs[(" ", "x")] -= 1
    first, second = pairs.most_common(1)[0][0]
    assert tokenizer.spellings[256] == (first + second).encode()


def test_a_small_corpus_gives_fewer_ids():
    tokenizer = text.BPE.train(["abc"], 1000)
    assert tokenizer.size == 256 + 2 + 1  # two merges make "abc" one token
    assert len(tokenizer.encode("abc")) == 1
    assert text.BPE.train([], 1000).size == 257


@pytest.mark.parametrize("vocab", [256, 0, -1, None, 300.0])
def test_a_vocabulary_has_room_for_the_bytes(vocab):
    with pytest.raises(ValueError, match=f"vocab={vocab} must be an integer from 257"):
        text.BPE.train(CORPUS, vocab)


def test_training_takes_iterators_of_strings_only():
    assert text.BPE.train(iter(CORPUS), 280).fingerprint == text.BPE.train(CORPUS, 280).fingerprint
    with pytest.raises(ValueError, match="not one string"):
        text.BPE.train("abc", 280)
    with pytest.raises(ValueError, match=r"texts\[1\] must be a string, not int"):
        text.BPE.train(["a", 1], 280)
    with pytest.raises(ValueError, match="lone surrogate"):
        text.BPE.train(["a\ud800"], 280)


def test_the_end_written_in_the_corpus_is_text():
    tokenizer = text.BPE.train(["a<|endoftext|>b " * 50], 400)
    assert tokenizer.spellings.count(b"<|endoftext|>") == 1
    assert tokenizer.end not in tokenizer.encode("<|endoftext|>")


NAMES = ["[MASK]", "<extra_id_0>", "<extra_id_1>", "<pad>"]


def test_special_tokens_follow_the_end_and_are_counted(tmp_path):
    tokenizer = text.BPE.train(CORPUS, 280, special=NAMES)
    assert (tokenizer.size, tokenizer.end) == (280, 275)
    assert tokenizer.spellings[275:] == (b"<|endoftext|>", *(name.encode() for name in NAMES))
    assert tokenizer.spellings[:275] == text.BPE.train(CORPUS, 276).spellings[:275]
    tokenizer.save(tmp_path)
    for same in (tokenizer, text.load(tmp_path), pickle.loads(pickle.dumps(tokenizer)), tokenizer.with_opening()):
        assert (same.mask, same.sentinels, same.pad) == (276, (277, 278), 279)
        assert same.special == (275, 276, 277, 278, 279)
        assert (same.begin, same.end, same.opening) in ((None, 275, 275), (275, 275, 275))
    assert text.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_special_tokens_are_never_text(tmp_path):
    string = "".join(f"the {name}{name} cat" for name in ("<|endoftext|>", *NAMES))
    tokenizer = text.BPE.train([string] * 100 + CORPUS, 500, special=NAMES)
    tokenizer.save(tmp_path)
    for same in (tokenizer, text.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        ids = same.encode(string)
        assert not set(same.special) & set(ids.tolist()) and same.decode(ids) == string
        np.testing.assert_array_equal(same.encode_batch([string])[0], ids)
        (a,) = same.encode("a")
        around = [a, same.mask, *same.sentinels, same.pad, same.end]
        assert same.decode(around) == "a"
        assert same.decode(around, keep_end=True) == "a[MASK]<extra_id_0><extra_id_1><pad><|endoftext|>"
        assert same.encode("a[MASK]<extra_id_0>", special=True).tolist() == around[:3]


def test_sentinels_are_in_the_order_of_their_numbers():
    names = [f"<extra_id_{number}>" for number in (3, 2, 12, 0, 1, 10)]
    tokenizer = text.BPE.train(CORPUS, 290, special=names)
    assert [tokenizer.spellings[index] for index in tokenizer.sentinels] == [b"<extra_id_%d>" % n for n in range(4)]
    assert text.BPE.train(CORPUS, 290, special=names[:2]).sentinels == ()


def test_without_special_tokens_all_is_as_it_was():
    tokenizer = text.BPE.train(CORPUS, 290)
    assert (tokenizer.mask, tokenizer.sentinels, tokenizer.special) == (None, (), (289,))
    assert tokenizer.fingerprint == text.BPE.train(CORPUS, 290, special=[]).fingerprint
    # What checkpoints hold: it changes only if ids do.
    assert tokenizer.fingerprint == "d1b904d93efa3fa43dfa90d071abb3fe28a904e5a2415ed1c0c34bf287c7cf8e"
    assert text.BPE.train(CORPUS, 290, special=["[MASK]"]).fingerprint != tokenizer.fingerprint


def test_other_kinds_have_them_too(tmp_path):
    bert = text.load(cases.save(cases.wordpiece(), tmp_path / "bert"))
    assert bert.spellings[bert.mask] == b"[MASK]"
    assert [bert.spellings[index].decode() for index in bert.special] == cases.BERT
    assert (text.Bytes().mask, text.Bytes().sentinels, text.Bytes().special) == (None, (), (256,))
    assert text.Characters.train(CORPUS).special == ()


def test_sentinels_of_a_published_t5(tmp_path):
    table = cases.unigram()
    table.add_special_tokens(["<extra_id_1>", "<extra_id_0>"])  # T5's count down to the last id
    library = text.load(cases.save(table, tmp_path / "library"))
    assert library.sentinels == (library.size - 1, library.size - 2)
    pytest.importorskip("sentencepiece")
    t5 = text.load(cases.t5(tmp_path))
    assert t5.sentinels == tuple(range(t5.size - 1, t5.size - 101, -1))
    assert set(t5.sentinels) | {t5.end, t5.pad} < set(t5.special)
    assert text.load(cases.llama(tmp_path / "llama")).sentinels == ()


@pytest.mark.parametrize(
    ("special", "reason"),
    [
        (["[MASK]", "mask"], r"special\[1\]='mask' could be taken for text: use printable ASCII"),
        ([" [x]"], "could be taken for text"),
        (["<\u0120x>"], "could be taken for text"),
        ([""], "could be taken for text"),
        (["[MASK]", "<a>", "[MASK]"], r"special\[2\]='\[MASK\]' is there already"),
        (["<|endoftext|>"], "is there already"),
        ("[MASK]", r"special='\[MASK\]' must be a list of names, not one string"),
        ([3], r"special\[0\] must be a string, not int"),
    ],
)
def test_special_tokens_that_cannot_be_told_from_text_are_refused(special, reason):
    with pytest.raises(ValueError, match=reason):
        text.BPE.train(CORPUS, 300, special=special)


def test_a_vocabulary_has_room_for_the_special_tokens():
    with pytest.raises(ValueError, match=r"vocab=260 must be an integer from 261 up: .* and 4 further special tokens"):
        text.BPE.train(CORPUS, 260, special=NAMES)
    assert text.BPE.train(CORPUS, 261, special=NAMES).size == 261


def test_only_bpe_is_trained_with_special_tokens():
    expected = text.BPE.train(CORPUS, 280, special=NAMES).fingerprint
    assert text.train("bpe", CORPUS, 280, special=NAMES).fingerprint == expected
    with pytest.raises(ValueError, match="special is no option of 'bytes', which has none: leave it out"):
        text.train("bytes", CORPUS, 280, special=NAMES)
    with pytest.raises(ValueError, match="special is no option of 'characters', which has fallback and end"):
        text.train("characters", CORPUS, 280, special=NAMES)


def test_lone_surrogates_are_refused():
    tokenizer = text.BPE.train(CORPUS, 260)
    for call in (lambda: tokenizer.encode("ab\udc80"), lambda: tokenizer.encode_batch(["a", "ab\udc80"])):
        with pytest.raises(ValueError, match=r"text\[2\] is '\\udc80', a lone surrogate"):
            call()


def test_other_processes_train_the_same():
    program = f"from transformer import text; print(text.BPE.train({CORPUS!r}, 290).fingerprint)"
    expected = text.BPE.train(CORPUS, 290).fingerprint
    for threads in ("1", "3"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_forking_after_a_batch_neither_hangs_nor_warns():
    program = (
        "import os\n"
        "from transformer import text\n"
        f"tokenizer = text.BPE.train({CORPUS!r}, 290)\n"
        f"tokenizer.encode_batch({CORPUS!r} * 100)\n"
        "child = os.fork()\n"
        f"tokenizer.encode_batch({CORPUS!r} * 100)\n"
        "if child:\n"
        "    raise SystemExit(os.waitpid(child, 0)[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]  # Python 3.12 warns of any such fork
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def table(vocabulary, *, special=()):
    """A tokenizer of the library itself, over the byte alphabet and further tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={token: index for index, token in enumerate([*letters, *vocabulary])}, merges=[])
    out = tokenizers.Tokenizer(model)
    out.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    out.decoder = decoders.ByteLevel()
    out.add_special_tokens(list(special))
    return out


def test_spellings_are_what_the_library_decodes():
    tokenizer = text.BPE.train(CORPUS, 300)
    reference = table([])
    for byte, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())):
        assert tokenizer.spellings[byte].decode("utf-8", "replace") == reference.decode([byte]), letter


@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ({"eos_token": "</s>"}, 257),
        ({"eos_token": {"content": "</s>"}}, 257),
        ({"eos_token": None}, None),
        ({"model_max_length": 1024}, 256),
        (None, 256),
    ],
)
def test_the_end_follows_the_settings(tmp_path, settings, end):
    table([], special=["<|endoftext|>", "</s>"]).save(str(tmp_path / "tokenizer.json"))
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = text.load(tmp_path)
    assert (loaded.end, loaded.size) == (end, 258)
    loaded.save(tmp_path / "again")
    assert text.load(tmp_path / "again").end == end


def test_special_tokens_have_roles_and_are_read_where_asked(tmp_path):
    names = ["<s>", "</s>", "<pad>", "<|user|>"]
    made = table([], special=names)
    ids = {name: made.token_to_id(name) for name in names}
    made.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    tokenizer = text.load(tmp_path)
    assert isinstance(tokenizer, text.BPE)
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == (ids["<s>"], ids["</s>"], ids["<pad>"])
    assert tokenizer.opening == ids["<s>"]
    around = tokenizer.encode("a<|user|>b", special=True).tolist()
    plain = tokenizer.encode("a<|user|>b").tolist()
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    assert around == [ids["<s>"], a, ids["<|user|>"], b, ids["</s>"]]
    assert not set(plain) & set(ids.values()) and tokenizer.decode(plain) == "a<|user|>b"
    assert tokenizer.decode(around) == "ab"
    assert tokenizer.decode(around, keep_end=True) == "<s>a<|user|>b</s>"
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a<|user|>b", special=True).tolist() == around
    assert (copy.fingerprint, copy.begin, copy.pad) == (tokenizer.fingerprint, tokenizer.begin, tokenizer.pad)


def test_the_fingerprint_knows_what_is_put_around_a_text(tmp_path):
    fingerprints = set()
    for single in ("$A", "<s> $A", "$A <s>"):
        made = table([], special=["<s>", "<|endoftext|>"])
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 256)])
        made.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "bos_token": None}))
        fingerprints.add(text.load(tmp_path).fingerprint)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "bos_token": "<s>"}))
    fingerprints.add(text.load(tmp_path).fingerprint)
    assert len(fingerprints) == 4


def test_without_an_end_there_is_none(tmp_path):
    table([]).save(str(tmp_path / "tokenizer.json"))
    assert text.load(tmp_path).end is None


@pytest.mark.parametrize("token", [3, "</s>", ["a"]])
def test_an_end_that_is_not_there_is_refused(tmp_path, token):
    table([]).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    with pytest.raises(ValueError, match=r"tokenizer\w*\.json cannot be read"):
        text.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": "1.0", "model": {"type": "BPE", "vo', "\xff"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, position):
    text.BPE.train(CORPUS, 280).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = path.read_bytes()
    path.write_bytes(content[: int(position * len(content))])
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        text.load(tmp_path)


def test_other_schemes_are_refused(tmp_path):
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json .*expected byte-level BPE, got WordLevel decoded by None"):
        text.BPE.load(tmp_path)
    other = table([])
    other.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    with pytest.raises(ValueError, match="expected byte-level BPE, got BPE decoded by Sequence"):
        text.BPE(other, end=None)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "reason"),
    [
        ({"ab": 256}, [["a", "b"], ["ab", "a"]], "merge 'ab a'"),
        ({"ab": 256}, ["a b", "b a"], "merge 'b a'"),
        ({"ab": 0}, [], "0 to 256, each once"),
        ({"ab": 2**32 - 1}, [], "0 to 256, each once"),
    ],
)
def test_a_changed_table_is_refused(tmp_path, vocabulary, merges, reason):
    path = tmp_path / "tokenizer.json"
    table([]).save(str(path))
    content = json.loads(path.read_text())
    content["model"]["vocab"].update(vocabulary)
    content["model"]["merges"] = merges
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"tokenizer\.json cannot be read .*{reason}"):
        text.load(tmp_path)


def test_a_missing_byte_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    table([]).save(str(path))
    content = json.loads(path.read_text())
    content["model"]["vocab"]["added"] = content["model"]["vocab"].pop("Ġ")
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="byte 32 is not in the vocabulary"):
        text.BPE.load(tmp_path)
    assert isinstance(text.load(tmp_path), text.Published)


@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [('{"a": 0', "#version: 0.2\n"), ('{"a": "b"}', ""), ('{"a": 0, "b": 1}', "a b\n"), ('{"a": 0}', "a b c\n")],
)
def test_damaged_published_files_are_named(tmp_path, vocabulary, merges):
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(ValueError, match=r"vocab\.json (with merges\.txt )?cannot be read") as raised:
        text.load(tmp_path)
    assert "\n" not in str(raised.value)
