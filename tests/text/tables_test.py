import json

import pytest
import tokenizers
from tokenizers import models, processors

from tests.text import cases
from transformer import text
from transformer.text import tables

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (None, ([], [])),
        (processors.ByteLevel(), ([], [])),
        (processors.RobertaProcessing(("</s>", 2), ("<s>", 0)), (["<s>"], ["</s>"])),
        (processors.BertProcessing(("[SEP]", 2), ("[CLS]", 0)), (["[CLS]"], ["[SEP]"])),
        (processors.TemplateProcessing(single="a b $A", special_tokens=[("a", 0), ("b", 1)]), (["a", "b"], [])),
        (
            processors.Sequence(
                [processors.ByteLevel(), processors.TemplateProcessing(single="$A a", special_tokens=[("a", 0)])]
            ),
            ([], ["a"]),
        ),
    ],
)
def test_what_stands_around_a_text(processor, expected):
    table = tokenizers.Tokenizer(models.BPE())
    if processor is not None:
        table.post_processor = processor
    assert tables.around(table) == expected


@pytest.mark.parametrize(
    ("special", "settings", "around", "begin"),
    [
        (["<|endoftext|>"], {}, "", "<|endoftext|>"),
        (ROBERTA, {}, "<s> </s>", "<s>"),
        (ROBERTA, {"tokenizer_class": "BartTokenizerFast"}, "<s> </s>", "<s>"),
        (ROBERTA, {"tokenizer_class": "GPT2Tokenizer"}, "", None),
        (ROBERTA, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>"}, "</s>", "</s>"),
        (["<s>", "</s>"], {"tokenizer_class": "TokenizersBackend"}, "", None),
    ],
)
def test_gpt2_and_roberta_are_told_apart(tmp_path, special, settings, around, begin):
    tokenizer = text.load(cases.pair(tmp_path, special, **settings))
    assert isinstance(tokenizer, text.BPE)
    ids = [tokenizer.spellings.index(name.encode()) for name in around.split()]
    plain = tokenizer.encode("the cat").tolist()
    before, after = (ids[:1], ids[1:])
    assert tokenizer.encode("the cat", special=True).tolist() == before + plain + after
    assert tokenizer.begin == (None if begin is None else tokenizer.spellings.index(begin.encode()))
    assert tokenizer.decode(plain) == "the cat"


def test_the_mask_of_roberta_takes_the_space_before_it(tmp_path):
    tokenizer = text.load(cases.pair(tmp_path, ROBERTA))
    ids = tokenizer.encode("the <mask> cat", special=True)
    assert ids.tolist() == [0, *tokenizer.encode("the"), 4, *tokenizer.encode(" cat"), 2]
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == (0, 2, 1)


@pytest.mark.parametrize(
    ("make", "name", "files"),
    [
        (cases.pair, "CLIPTokenizer", "vocab.json with merges.txt can be read only as one of BartTokenizer, "),
        (cases.words, "EsmTokenizer", "vocab.txt can be read only as one of BertTokenizer, "),
        (cases.words, ["BertTokenizer"], "vocab.txt can be read only as one of BertTokenizer, "),
    ],
)
def test_other_classes_are_refused(tmp_path, make, name, files):
    folder = make(tmp_path, tokenizer_class=name)
    with pytest.raises(
        ValueError, match=rf"tokenizer_config\.json names tokenizer_class=.*, but {files}.*tokenizer\.json"
    ):
        text.load(folder)


def test_a_pair_without_the_tokens_of_its_class_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"vocab\.json with merges\.txt .*the cls token '<s>' is not in the vocabulary"
    ):
        text.load(cases.pair(tmp_path, tokenizer_class="RobertaTokenizer"))


def test_words_are_read_as_bert_reads_them(tmp_path):
    folder = cases.write(
        tmp_path, vocab__txt="[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nunwant\n##ed\ncafe\n!\nCaf\n##é\n日\n"
    )
    tokenizer = text.load(folder)
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad, tokenizer.size) == (2, 3, 0, 12)
    assert tokenizer.encode("UNwanted  CAFÉ! xyz日", special=True).tolist() == [2, 5, 6, 7, 8, 1, 11, 3]
    assert tokenizer.encode("unwanted [MASK]", special=True).tolist() == [2, 5, 6, 4, 3]
    assert tokenizer.decode([2, 5, 6, 8, 7, 3]) == "unwanted! cafe"


@pytest.mark.parametrize(
    ("settings", "string", "ids"),
    [
        ({"do_lower_case": False}, "Café cafe", [9, 10, 7]),
        ({"strip_accents": False, "do_lower_case": False}, "Café", [9, 10]),
        ({"strip_accents": True, "do_lower_case": False}, "Café café", [1, 7]),
        ({"strip_accents": False}, "CAFÉ", [1]),
        ({"tokenize_chinese_chars": False}, "cafe日", [1]),
        ({"unk_token": "!"}, "xyz", [8]),
        ({"cls_token": "!", "sep_token": {"content": "!"}}, "cafe", [7]),
    ],
)
def test_settings_of_bert(tmp_path, settings, string, ids):
    words = "[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\nunwant\r\n##ed\r\ncafe\r\n!\r\nCaf\r\n##é\r\n日"
    tokenizer = text.load(cases.write(tmp_path, vocab__txt=words, tokenizer_config__json=settings))
    assert tokenizer.encode(string).tolist() == ids
    if "cls_token" in settings:
        assert tokenizer.encode(string, special=True).tolist() == [8, *ids, 8]


@pytest.mark.parametrize(
    ("content", "settings", "reason"),
    [
        ("[UNK]\n[CLS]\na\n", {}, r"vocab\.txt .*the sep token '\[SEP\]'"),
        ("", {}, r"vocab\.txt .*the unk token '\[UNK\]'"),
        ("[UNK]\n[CLS]\n[SEP]\n", {"unk_token": "x"}, r"vocab\.txt .*the unk token 'x'"),
        ("[UNK]\n[CLS]\n[SEP]\n", {"cls_token": None}, r"vocab\.txt .*the cls token '\[CLS\]'"),
        ("[UNK]\n[CLS]\n[SEP]\n", {"pad_token": "x"}, r"vocab\.txt .*the pad token 'x'"),
        ("[UNK]\n[CLS]\n[SEP]\n", {"do_lower_case": "no"}, r"tokenizer_config\.json .*do_lower_case='no' must be true"),
        (
            "[UNK]\n[CLS]\n[SEP]\n",
            {"added_tokens_decoder": {"7": {"content": "x"}}},
            r"vocab\.txt .*'x' has the id 7, but 3",
        ),
        (b"[UNK]\n\xff\n", {}, r"vocab\.txt cannot be read"),
    ],
)
def test_damaged_words_are_named(tmp_path, content, settings, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        text.load(cases.write(tmp_path, vocab__txt=content, tokenizer_config__json=settings))
    assert "\n" not in str(raised.value)


def test_merges_with_a_prefix_are_understood(tmp_path):
    vocabulary = {"a": 0, "##b": 1, "ab": 2}
    model = models.BPE(vocab=vocabulary, merges=[("a", "##b")], continuing_subword_prefix="##")
    tokenizer = text.load(cases.save(tokenizers.Tokenizer(model), tmp_path))
    assert tokenizer.encode("ab").tolist() == [2]


def test_an_added_token_keeps_its_id_or_is_refused(tmp_path):
    content = json.loads(cases.unigram().to_str())
    size = len(content["model"]["vocab"])
    entry = {**content["added_tokens"][0], "content": "<new>", "id": size}
    tokenizer = text.load(cases.write(tmp_path, tokenizer__json={**content, "added_tokens": [entry]}))
    assert tokenizer.encode("<new>", special=True)[0] == size
    cases.write(tmp_path, tokenizer__json={**content, "added_tokens": [{**entry, "id": size + 5}]})
    with pytest.raises(ValueError, match=rf"tokenizer\.json .*'<new>' has the id {size + 5}, but {size} in the vocab"):
        text.load(tmp_path)
