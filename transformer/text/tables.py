"""The library's tokenizers, read from the files that published models come with."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from transformer.text import special, storage
from transformer.text.special import Special
from transformer.text.tokenizer import END

NEUTRAL = (None, "PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")  # classes that say nothing
GPT2 = {"CodeGenTokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer"}
ROBERTA = {"BartTokenizer", "LEDTokenizer", "LongformerTokenizer", "MvpTokenizer", "RobertaTokenizer"}
BERT = {"BertTokenizer", "ConvBertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"}
GPT2_ROLES = Special(bos=END, eos=END, unk=END)
ROBERTA_ROLES = Special("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>")
BERT_ROLES = Special(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
PAIR = f"{storage.VOCABULARY} with {storage.MERGES}"


def read(folder: pathlib.Path) -> tuple[pathlib.Path, tokenizers.Tokenizer, Special]:
    """The file that the tokenizer in `folder` was read from, the tokenizer, and its special tokens.

    Raises:
      ValueError: if a file is damaged, or of a class that cannot be read.
    """
    if (folder / storage.BPE).is_file():
        return folder / storage.BPE, *read_table(folder)
    if (folder / storage.MERGES).is_file() or not (folder / storage.WORDS).is_file():
        return folder / storage.VOCABULARY, *read_pair(folder)
    return folder / storage.WORDS, *read_words(folder)


def read_table(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, Special]:
    """The tokenizer of `tokenizer.json`, with the tokens that other files add to it, and its special tokens.

    Raises:
      ValueError: if a file is damaged.
    """
    path = folder / storage.BPE
    content = storage.read_object(path)
    named, added = special.read_roles(folder), special.read_added(folder)
    model = content.get("model")
    try:
        if isinstance(model, dict) and model.get("type") == "BPE":
            _check_merges(model["vocab"], model["merges"], model.get("continuing_subword_prefix") or "")
        table = tokenizers.Tokenizer.from_str(storage.read(path))
        _add(
            table, {token["id"]: tokenizers.AddedToken(token["content"]) for token in content.get("added_tokens") or ()}
        )
        _add(table, added)
        beside = around(table)
    except Exception as error:  # the library raises nothing more exact
        raise storage.damaged(
            path, f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        ) from None
    marked = [token.content for token in table.get_added_tokens_decoder().values() if token.special]
    return table, special.complete(named, beside, marked)


def read_pair(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, Special]:
    """The byte-level BPE of `vocab.json` and `merges.txt`, as GPT-2 or as RoBERTa.

    The `tokenizer_class` of `tokenizer_config.json` says which, or else the vocabulary: RoBERTa's has `<s>`, `</s>`
    and `<pad>`.

    Raises:
      ValueError: if a file is damaged, or of another class.
    """
    vocabulary = storage.read_object(folder / storage.VOCABULARY)
    # Not splitlines: it cuts at characters that stand for bytes here.
    lines = [line.rstrip("\r") for line in storage.read(folder / storage.MERGES).split("\n")]
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    name = check_class(folder, GPT2 | ROBERTA, PAIR)
    roberta = name in ROBERTA or (name not in GPT2 and {"<s>", "</s>", "<pad>"} <= vocabulary.keys())
    prefix = special.read_flag(folder, "add_prefix_space", False)
    opened = special.read_flag(folder, "add_bos_token", False)
    named, added = special.read_roles(folder), special.read_added(folder)
    try:
        _check_merges(vocabulary, merges)
        table = byte_level(models.BPE(vocab=vocabulary, merges=merges), prefix)
        _add(table, added)
        roles = _choose(table, ROBERTA_ROLES if roberta else GPT2_ROLES, named, ("cls", "sep") if roberta else ())
    except Exception as error:
        raise storage.damaged(folder / PAIR, error) from None
    if roberta:
        sep, cls = ((token, table.token_to_id(token)) for token in (roles.sep, roles.cls))
        table.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=prefix)
        if roles.mask and roles.mask not in {token.content for token in added.values()}:
            # The space before a mask belongs to it: the word that it stands for had one of its own.
            table.add_special_tokens([tokenizers.AddedToken(roles.mask, lstrip=True, normalized=False)])
    elif opened and roles.bos:
        table.post_processor = _template([roles.bos, "$A"], [roles.bos, "$A", "$B"], table)
    return table, roles


def read_words(folder: pathlib.Path) -> tuple[tokenizers.Tokenizer, Special]:
    """The WordPiece tokenizer of `vocab.txt`, one token a line, as BERT (Devlin et al. 2019, arXiv:1810.04805).

    Raises:
      ValueError: if a file is damaged, or of another class.
    """
    check_class(folder, BERT, storage.WORDS)
    lines = storage.read(folder / storage.WORDS).removesuffix("\n").split("\n")
    vocabulary = {line.removesuffix("\r"): index for index, line in enumerate(lines)}
    named, added = special.read_roles(folder), special.read_added(folder)
    normalizer = normalizers.BertNormalizer(
        lowercase=special.read_flag(folder, "do_lower_case", True),
        handle_chinese_chars=special.read_flag(folder, "tokenize_chinese_chars", True),
        strip_accents=special.read_flag(folder, "strip_accents", None),
    )
    try:
        table = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=named.get("unk") or BERT_ROLES.unk))
        _add(table, added)
        roles = _choose(table, BERT_ROLES, named, ("unk", "cls", "sep"))
    except Exception as error:
        raise storage.damaged(folder / storage.WORDS, error) from None
    table.normalizer = normalizer
    table.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    table.decoder = decoders.WordPiece(prefix="##")
    single = [roles.cls, "$A", roles.sep]
    table.post_processor = _template(single, [*single, "$B:1", f"{roles.sep}:1"], table)
    return table, roles


def byte_level(model: models.BPE, prefix: bool = False) -> tokenizers.Tokenizer:
    """GPT-2's cutting and spelling around a model; `prefix`: a text that opens with a word gets a space before it."""
    table = tokenizers.Tokenizer(model)
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    table.decoder = decoders.ByteLevel()
    return table


def around(table: tokenizers.Tokenizer) -> tuple[list[str], list[str]]:
    """The tokens that `table` puts before a text and after it."""
    processor = state(table.post_processor) or {}
    before: list[str] = []
    after: list[str] = []
    for step in processor.get("processors", [processor]):
        if "single" in step:
            place = before
            for item in step["single"]:
                if "Sequence" in item:
                    place = after
                else:
                    place += step["special_tokens"][item["SpecialToken"]["id"]]["tokens"]
        elif "cls" in step:
            before.append(step["cls"][0])
            after.append(step["sep"][0])
    return before, after


def state(part: object | None) -> dict[str, object] | None:
    """A part of the library's tokenizer as `tokenizer.json` writes it."""
    return None if part is None else json.loads(part.__getstate__())


def check_class(folder: pathlib.Path, known: Collection[str], files: str) -> str | None:
    """The `tokenizer_class` of `tokenizer_config.json` without its "Fast"; None if it says nothing.

    Raises:
      ValueError: if `files` of that class cannot be read, because it is none of the `known`.
    """
    name = special.read_settings(folder).get("tokenizer_class")
    if name in NEUTRAL:
        return None
    plain = str(name).removesuffix("Fast")
    if plain not in known:
        raise ValueError(
            f"{folder / storage.SETTINGS} names tokenizer_class={name!r}, but {files} can be read only as one of "
            f"{', '.join(sorted(known))}: give the model's {storage.BPE} too"
        )
    return plain


def _add(table: tokenizers.Tokenizer, added: Mapping[int, tokenizers.AddedToken]) -> None:
    """Adds the tokens that `table` lacks; raises ValueError if one does not get its id."""
    for index, token in added.items():
        if table.token_to_id(token.content) is None:
            table.add_tokens([token])
        if table.token_to_id(token.content) != index:
            there = table.token_to_id(token.content)
            raise ValueError(f"the added token {token.content!r} has the id {index}, but {there} in the vocabulary")


def _choose(
    table: tokenizers.Tokenizer, defaults: Special, named: Mapping[str, str | None], needed: Sequence[str]
) -> Special:
    """The named roles and, where `table` has them, the defaults; raises ValueError if a needed one is not there."""
    there = {role: name for role, name in defaults.roles().items() if name and table.token_to_id(name) is not None}
    roles = Special(**{**there, **named})
    for role in needed:
        name = roles.roles()[role]
        if name is None or table.token_to_id(name) is None:
            raise ValueError(f"the {role} token {name or defaults.roles()[role]!r} is not in the vocabulary")
    return roles


def _template(single: list[str], pair: list[str], table: tokenizers.Tokenizer) -> processors.TemplateProcessing:
    ids = [(name, table.token_to_id(name)) for name in dict.fromkeys(single) if name != "$A"]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def _check_merges(vocabulary: Mapping[str, int], merges: Sequence[str | Sequence[str]], prefix: str = "") -> None:
    """What the library would not refuse but abort on, with a trace of its own on the terminal."""
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or pair[0] + pair[1].removeprefix(prefix) not in vocabulary:
            raise ValueError(f"merge {' '.join(pair)!r} does not make two tokens one of the vocabulary")
