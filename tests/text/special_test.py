import json

import pytest

from transformer.text import special
from transformer.text.special import Special


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_begin_and_end_fall_back_on_classification_and_separator():
    assert (Special(bos="<s>", cls="[CLS]").begin, Special(cls="[CLS]").begin, Special().begin) == (
        "<s>",
        "[CLS]",
        None,
    )
    assert (Special(eos="</s>", sep="[SEP]").end, Special(sep="[SEP]").end, Special().end) == ("</s>", "[SEP]", None)
    assert Special(bos="a", eos="b", sep="a").names == ("a", "b")


def test_the_settings_count_before_the_map(tmp_path):
    assert special.read_roles(tmp_path) == {}
    settings = {"eos_token": None, "pad_token": {"content": "<p>", "lstrip": True}, "mask_token": "", "other": 1}
    write(tmp_path, tokenizer_config=settings, special_tokens_map={"eos_token": "x", "bos_token": "<b>"})
    assert special.read_roles(tmp_path) == {"eos": None, "pad": "<p>", "mask": None, "bos": "<b>"}


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("token", [3, ["a"], {"content": 3}, True])
def test_a_token_is_a_string(tmp_path, name, token):
    write(tmp_path, **{name: {"cls_token": token}})
    with pytest.raises(ValueError, match=rf"{name}\.json cannot be read .*cls_token=.* is no string"):
        special.read_roles(tmp_path)


def test_flags_are_true_or_false(tmp_path):
    assert special.read_flag(tmp_path, "strip_accents", None) is None
    write(tmp_path, tokenizer_config={"a": False, "b": None, "c": 0})
    assert special.read_flag(tmp_path, "a", True) is False
    assert special.read_flag(tmp_path, "b", None) is None
    for name in ("b", "c"):
        with pytest.raises(ValueError, match=rf"tokenizer_config\.json .*{name}=.* must be true or false"):
            special.read_flag(tmp_path, name, True)


def test_added_tokens_come_from_the_settings_or_their_own_file(tmp_path):
    assert special.read_added(tmp_path) == {}
    write(tmp_path, added_tokens={"<b>": 8, "<a>": 7})
    assert [(index, token.content) for index, token in special.read_added(tmp_path).items()] == [(7, "<a>"), (8, "<b>")]
    write(tmp_path, tokenizer_config={"added_tokens_decoder": {"9": {"content": "<c>", "special": True}}})
    ((index, token),) = special.read_added(tmp_path).items()
    assert (index, token.content, token.special) == (9, "<c>", True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config", {"added_tokens_decoder": {"1": {"special": True}}}),
        ("tokenizer_config", {"added_tokens_decoder": {"1": {"content": 1}}}),
        ("tokenizer_config", {"added_tokens_decoder": ["a"]}),
        ("added_tokens", {"a": "b"}),
    ],
)
def test_damaged_added_tokens_are_named(tmp_path, name, content):
    write(tmp_path, **{name: content})
    with pytest.raises(ValueError, match=rf"{name}\.json cannot be read") as raised:
        special.read_added(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("named", "around", "names", "expected"),
    [
        ({}, ([], []), [], Special()),
        (
            {},
            (["[CLS]"], ["[SEP]"]),
            ["[PAD]", "[MASK]"],
            Special(cls="[CLS]", sep="[SEP]", pad="[PAD]", mask="[MASK]"),
        ),
        ({}, (["<s>"], ["</s>"]), ["<pad>", "<unk>"], Special(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")),
        ({}, ([], []), ["<|endoftext|>"], Special(eos="<|endoftext|>")),
        ({"eos": None}, ([], ["</s>"]), ["<|endoftext|>"], Special()),
        ({"sep": "[S]", "cls": None, "pad": None}, (["a"], ["b"]), ["<pad>"], Special(sep="[S]")),
    ],
)
def test_what_no_file_names_is_what_stands_around_a_text(named, around, names, expected):
    assert special.complete(named, around, names) == expected
