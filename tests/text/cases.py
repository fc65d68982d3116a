"""Folders with small tokenizers of the schemes that published models have."""

import functools
import io
import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the cat sat on the mat, the cat's hat.",
    "low lower lowest, new newer newest",
    "Hello World, I don't know what it is!",
    "Grüße aus Köln an alle Leute",
    "two  spaces\nand a line",
] * 4
STRINGS = [
    "",
    "Hello World, I don't know.",
    "Café naïve ÀÉÎ e\u0301",
    "one  two   three ",
    "a new\nline\r\n\tand",
    "emoji 🙂 日本語 👩‍👩‍👧",
    "isn't it ? yes ! it 's . we 've",
    "\x00 \ufeff \u2028",
]
ROLES = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
BERT = list(ROLES.values())


def made_once(make):
    """A tokenizer of its own for each caller, but all alike: training a unigram model twice may give two."""

    @functools.cache
    def content(*arguments, **options):
        return make(*arguments, **options).to_str()

    return lambda *arguments, **options: tokenizers.Tokenizer.from_str(
        content(*map(_frozen, arguments), **{name: _frozen(value) for name, value in options.items()})
    )


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value


def write(folder, **files):
    """Writes `NAME__SUFFIX=content`; what is neither text nor bytes becomes JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, (str, bytes)):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        else:
            path.write_text(json.dumps(content))
    return folder


def trained(table, trainer):
    table.train_from_iterator(CORPUS, trainer)
    return table


@made_once
def wordpiece():
    """As BERT's."""
    table = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    table.normalizer = normalizers.BertNormalizer(lowercase=True)
    table.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    table.decoder = decoders.WordPiece(prefix="##")
    trained(table, trainers.WordPieceTrainer(vocab_size=120, special_tokens=BERT, show_progress=False))
    ids = [(name, table.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    table.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return table


@made_once
def unigram():
    """As T5's."""
    table = tokenizers.Tokenizer(models.Unigram())
    table.normalizer = normalizers.NFKC()
    table.pre_tokenizer = pre_tokenizers.Metaspace()
    table.decoder = decoders.Metaspace()
    names = ["<pad>", "</s>", "<unk>"]
    trained(
        table,
        trainers.UnigramTrainer(vocab_size=120, special_tokens=names, unk_token="<unk>", show_progress=False),
    )
    table.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return table


@made_once
def fallback():
    """As Llama 2's: characters, with bytes for the others."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    table = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    table.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    table.decoder = decoders.Sequence(steps)
    trained(table, trainers.BpeTrainer(vocab_size=360, special_tokens=names, show_progress=False))
    # The trainer made the bytes special, too.
    content = json.loads(table.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    table = tokenizers.Tokenizer.from_str(json.dumps(content))
    table.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return table


@made_once
def byte_level(special=(), ignore_merges=False):
    """As GPT-2's; with special tokens first, as RoBERTa's; with `ignore_merges`, as Llama 3's."""
    table = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    return trained(table, trainer)


def save(table, folder, **settings):
    """`tokenizer.json` and, with settings, `tokenizer_config.json`."""
    return write(folder, tokenizer__json=table.to_str(), **({"tokenizer_config__json": settings} if settings else {}))


def pair(folder, special=(), **settings):
    """`vocab.json` and `merges.txt`."""
    model = json.loads(byte_level(special).to_str())["model"]
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    files = {"vocab__json": model["vocab"], "merges__txt": f"#version: 0.2\n{merges}"}
    return write(folder, **files, **({"tokenizer_config__json": settings} if settings else {}))


def words(folder, **settings):
    """`vocab.txt`."""
    vocabulary = sorted(wordpiece().get_vocab().items(), key=lambda item: item[1])
    content = "".join(f"{word}\n" for word, _ in vocabulary)
    return write(folder, vocab__txt=content, **({"tokenizer_config__json": settings} if settings else {}))


def piece_model(corpus=CORPUS, **options):
    """The bytes of a SentencePiece model."""
    package = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=out,
        minloglevel=2,
        hard_vocab_limit=False,
        character_coverage=1.0,
        **options,
    )
    return out.getvalue()


def t5(folder, **settings):
    """`spiece.model` with T5's special ids."""
    model = piece_model(vocab_size=120, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return write(folder, spiece__model=model, tokenizer_config__json=settings)


def llama(folder, **settings):
    """`tokenizer.model` as Llama 2's."""
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    model = piece_model(vocab_size=400, model_type="bpe", byte_fallback=True, **plain)
    return write(folder, tokenizer__model=model, tokenizer_config__json=settings)


def gemma(folder, **settings):
    """`tokenizer.model` as Gemma's."""
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}
    special = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "bos_piece": "<bos>", "eos_piece": "<eos>"}
    model = piece_model(vocab_size=400, model_type="bpe", byte_fallback=True, **plain, **special)
    return write(folder, tokenizer__model=model, tokenizer_config__json=settings)


def marian(folder, **settings):
    """`source.spm`, `target.spm` and a `vocab.json` that lacks some of the source's pieces."""
    package = pytest.importorskip("sentencepiece")
    source = piece_model(vocab_size=80, model_type="unigram")
    target = piece_model(CORPUS[1:4], vocab_size=100, model_type="unigram")
    names = ["</s>", "<unk>"]
    for model in (target, source):
        reader = package.SentencePieceProcessor()
        reader.LoadFromSerializedProto(model)
        names += [reader.id_to_piece(index) for index in range(3, reader.get_piece_size()) if index % 9]
    names = dict.fromkeys([*names, ">>fr<<", "<pad>"])
    vocabulary = {name: index for index, name in enumerate(names)}
    return write(
        folder, source__spm=source, target__spm=target, vocab__json=vocabulary, tokenizer_config__json=settings
    )
