"""From text to batches: preparing a corpus, training and using a tokenizer, and batches as fast as they come."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import peers
from experiments.benchmarks.contest import Case, Program, Settings

DATA = ("transformer.data",)
LENGTH, ROWS, VOCAB = 256, 32, 4096


def pipeline(settings: Settings) -> list[Case]:
    """A corpus prepared in a new folder and in the same one again; training batches, the next one asked for at once."""
    size = settings.choose(8_000_000, 8_000_000, 100_000)
    found = []
    for action in ("new folder", "same folder"):
        program = Program("ours", "corpus:our_preparation", {"size": size, "again": action == "same folder"}, DATA)
        found.append(Case(f"prepare, {action}", "-", [program], size, "B", repeats=3, warmups=0))
    batches, length = settings.choose(200, 200, 2), settings.choose(LENGTH, LENGTH, 16)
    arguments = {"size": size, "batches": batches, "length": length}
    programs = [
        Program("ours", "corpus:our_batches", arguments, DATA),
        Program("torch", "corpus:torch_batches", arguments, ("torch",)),
    ]
    return [*found, Case("batches", "-", programs, batches * ROWS * length, "tokens", warmups=1)]


def tokenizer(settings: Settings) -> list[Case]:
    """Byte-level BPE: a vocabulary of 4,096 learnt, and text encoded, whole and as many documents."""
    found = []
    size, vocab = settings.choose(8_000_000, 8_000_000, 100_000), settings.choose(VOCAB, VOCAB, 300)
    for action in ("train", "encode", "encode batch"):
        arguments = {"size": size, "vocab": vocab, "action": action}
        programs = [
            Program("ours", "corpus:our_tokenizer", arguments),
            Program("tokenizers", "corpus:bare_tokenizer", arguments),
        ]
        found.append(Case(f"tokenizer {action}", "-", programs, size, "B", repeats=3, warmups=1))
    return found


def our_preparation(size: int, again: bool) -> Callable[[], float]:
    """`data.prepare` of bytes."""
    from transformer import data

    config = _config(size, LENGTH)

    def program() -> float:
        with tempfile.TemporaryDirectory() as folder:
            if again:
                data.prepare(config, folder)
            start = time.perf_counter()
            data.prepare(config, folder)
            return time.perf_counter() - start

    return program


def our_batches(size: int, batches: int, length: int) -> Callable[[], Any]:
    """`data.batches`: every window once an epoch in an order of its own, inputs, targets and weights."""
    from transformer import data

    corpus = data.prepare(_config(size, length), tempfile.mkdtemp())
    stream = data.batches(corpus, batch_size=ROWS, seed=0)
    return lambda: [next(stream) for _ in range(batches)][-1]["targets"][0, 0]


def torch_batches(size: int, batches: int, length: int) -> Callable[[], Any]:
    """Windows at random places of an array on disk, stacked to inputs and targets, as small trainers do it."""
    import numpy as np

    torch, _, _ = peers.torch("cpu")
    path = f"{tempfile.mkdtemp()}/tokens"
    np.frombuffer(_text(size).encode(), np.uint8).astype(np.uint16).tofile(path)
    tokens = np.memmap(path, np.uint16, "r")

    def batch() -> tuple[Any, Any]:
        places = torch.randint(len(tokens) - length, (ROWS,))
        rows = torch.stack([torch.from_numpy(tokens[i : i + length + 1].astype(np.int64)) for i in places])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    return lambda: [batch() for _ in range(batches)][-1]


def our_tokenizer(size: int, vocab: int, action: str) -> Callable[[], Any]:
    """`text.BPE`."""
    from transformer import text

    corpus = _text(size)
    documents = _documents(corpus)
    if action == "train":
        return lambda: text.BPE.train(documents, vocab)
    table = text.BPE.train(documents[:20], vocab)
    return (lambda: table.encode(corpus)) if action == "encode" else (lambda: table.encode_batch(documents))


def bare_tokenizer(size: int, vocab: int, action: str) -> Callable[[], Any]:
    """The library that ours is built on, called by itself."""
    import tokenizers

    corpus = _text(size)
    documents = _documents(corpus)

    def train(texts: list[str]) -> tokenizers.Tokenizer:
        table = tokenizers.Tokenizer(tokenizers.models.BPE())
        table.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
        table.train_from_iterator(texts, trainer)
        return table

    if action == "train":
        return lambda: train(documents)
    table = train(documents[:20])
    if action == "encode":
        return lambda: table.encode(corpus).ids
    return lambda: [encoding.ids for encoding in table.encode_batch(documents)]


def _config(size: int, length: int) -> Any:
    from transformer import data

    path = f"{tempfile.mkdtemp()}/text.txt"
    with open(path, "w") as file:
        file.write(_text(size))
    return data.Data(path=path, length=length, split="tail", tokenizer=data.Tokenizer("bytes"))


def _text(size: int) -> str:
    """So many bytes of words of random letters, the first ones far more frequent than the last, as in a language."""
    chooser = random.Random(0)
    words = ["".join(chooser.choices("etaoinshrdlucmfw", k=chooser.randint(1, 9))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return " ".join(chooser.choices(words, weights, k=size // 2))[:size].ljust(size)


def _documents(corpus: str, size: int = 4000) -> list[str]:
    return [corpus[start : start + size] for start in range(0, len(corpus), size)]
