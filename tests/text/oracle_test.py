"""Every kind of file against the publisher's library: ids with and without special tokens, decoded text, saved files.

Needs the extra `oracle`; the rest of the suite does without.
"""

import json
import warnings

import pytest
from tokenizers import processors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="the extra `oracle` is not installed")

from tests.text import cases
from transformer import text

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses:UserWarning")

ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
OPT = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}
OPT |= {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}


def fast(make, **settings):
    return lambda folder: cases.save(make(), folder, tokenizer_class="PreTrainedTokenizerFast", **settings)


def roberta():
    table = cases.byte_level(ROBERTA)
    table.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return table


def llama3():
    table = cases.byte_level(ignore_merges=True)
    table.add_special_tokens(["<|begin|>", "<|end|>", "<|turn|>"])
    begin = ("<|begin|>", table.token_to_id("<|begin|>"))
    template = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[begin])
    table.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return table


LIBRARY = {
    "wordpiece": fast(cases.wordpiece, **cases.ROLES),
    "wordpiece, cleaned": fast(cases.wordpiece, clean_up_tokenization_spaces=True, **cases.ROLES),
    "unigram": fast(cases.unigram, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"),
    "fallback": fast(cases.fallback, bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
    "fallback, not cleaned": fast(cases.fallback, clean_up_tokenization_spaces=True, bos_token="<s>"),
    "gpt2": fast(lambda: cases.byte_level(["<|endoftext|>"]), eos_token="<|endoftext|>"),
    "roberta": fast(roberta, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>"),
    "llama3": fast(llama3, bos_token="<|begin|>", eos_token="<|end|>", clean_up_tokenization_spaces=True),
    "gpt2, pair": lambda folder: cases.pair(folder, ["<|endoftext|>"], tokenizer_class="GPT2Tokenizer"),
    "opt, pair": lambda folder: cases.pair(folder, ROBERTA[:4], **OPT),
    "roberta, pair": lambda folder: cases.pair(folder, ROBERTA, tokenizer_class="RobertaTokenizer"),
    "roberta, pair, prefix": lambda folder: cases.pair(
        folder, ROBERTA, tokenizer_class="RobertaTokenizer", add_prefix_space=True
    ),
    "bert, words": lambda folder: cases.words(folder, tokenizer_class="BertTokenizer"),
    "bert, words, cased": lambda folder: cases.words(folder, tokenizer_class="BertTokenizer", do_lower_case=False),
    "bert, words, accents": lambda folder: cases.words(
        folder, tokenizer_class="BertTokenizer", strip_accents=False, tokenize_chinese_chars=False
    ),
}
PIECES = {
    "t5": lambda folder: cases.t5(folder, tokenizer_class="T5Tokenizer"),
    "t5, three sentinels": lambda folder: cases.t5(folder, tokenizer_class="T5Tokenizer", extra_ids=3),
    "llama": lambda folder: cases.llama(folder, tokenizer_class="LlamaTokenizer", add_bos_token=True),
    "llama, end": lambda folder: cases.llama(
        folder, tokenizer_class="LlamaTokenizer", add_bos_token=False, add_eos_token=True
    ),
    "gemma": lambda folder: cases.gemma(folder, tokenizer_class="GemmaTokenizer", add_bos_token=True),
    "marian": lambda folder: cases.marian(folder, tokenizer_class="MarianTokenizer"),
}


@pytest.fixture(params=["published", "saved"])
def opened(request, tmp_path):
    """`opened(make)`: this project's tokenizer and theirs, of the published files or of those that were saved."""

    def both(make):
        folder = make(tmp_path / "published")
        ours = text.load(folder)
        if request.param == "saved":
            folder = tmp_path / "saved"
            ours.save(folder)
            again = text.load(folder)
            assert again.fingerprint == ours.fingerprint
            ours = again
        return ours, transformers.AutoTokenizer.from_pretrained(folder)

    return both


@pytest.mark.parametrize("name", LIBRARY)
def test_ids_and_text_of_the_library(name, opened):
    ours, theirs = opened(LIBRARY[name])
    strings = [*cases.STRINGS, " a space in front", *(f"the {token} cat" for token in theirs.all_special_tokens)]
    # A mask takes the space before it in the files that were published, which their class does not know of.
    strings = [string for string in strings if "<mask>" not in string]
    for string in strings:
        ids = theirs.encode(string)
        assert ours.encode(string, special=True).tolist() == ids, string
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), string
        assert ours.decode(ids, keep_end=True) == theirs.decode(ids), string
    for string in [*cases.STRINGS, " a space in front"]:
        ids = theirs.encode(string, add_special_tokens=False)
        assert ours.encode(string).tolist() == ids, string
    assert (ours.begin, ours.end) == (
        theirs.bos_token_id if theirs.bos_token_id is not None else theirs.cls_token_id,
        theirs.eos_token_id if theirs.eos_token_id is not None else theirs.sep_token_id,
    )
    assert ours.pad == theirs.pad_token_id
    assert ours.size == len(theirs)


@pytest.mark.parametrize("name", PIECES)
def test_ids_and_text_of_sentencepiece(name, opened):
    ours, theirs = opened(PIECES[name])
    for string in [*cases.STRINGS, *([">>fr<<the cat", ">>fr<< the cat"] if name == "marian" else [])]:
        ids = theirs.encode(string)
        assert ours.encode(string, special=True).tolist() == ids, string
        assert ours.encode(string).tolist() == theirs.encode(string, add_special_tokens=False), string
        if theirs.unk_token_id not in ids:  # beside one, their spaces are not those of the package
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), string
    assert (ours.end, ours.pad) == (theirs.eos_token_id, theirs.pad_token_id)
    assert ours.begin == theirs.bos_token_id


def test_sentinels_of_t5_are_read_with_special(tmp_path):
    folder = cases.t5(tmp_path, tokenizer_class="T5Tokenizer")
    ours, theirs = text.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    string = "the<extra_id_0> sat on<extra_id_1>"
    assert ours.encode(string, special=True).tolist() == theirs.encode(string)
    assert ours.size == len(theirs)


@pytest.mark.parametrize("name", ["wordpiece", "unigram", "roberta", "llama3"])
def test_roles_and_added_tokens_are_kept(name, tmp_path):
    folder = LIBRARY[name](tmp_path / "published")
    path = folder / "tokenizer_config.json"
    size = text.load(folder).size
    added = {str(size): {"content": "<extra>", "special": True}, str(size + 1): {"content": "<more>", "special": False}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": added}))
    before, ours = transformers.AutoTokenizer.from_pretrained(folder), text.load(folder)
    ours.save(tmp_path / "saved")
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(before) == len(after) == ours.size == size + 2
    assert before.added_tokens_encoder == after.added_tokens_encoder
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        named = getattr(before, f"{role}_token")
        assert named is None or getattr(after, f"{role}_token") == named
    for string in ("a <extra> b", "a<more>b"):
        assert ours.encode(string, special=True).tolist() == before.encode(string) == after.encode(string)
    assert size + 1 in ours.encode("a<more>b") and size not in ours.encode("a<extra>b")
    ids = ours.encode("the <extra> <more> cat", special=True)
    assert ours.decode(ids) == before.decode(ids, skip_special_tokens=True)
