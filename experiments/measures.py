"""What an evaluation of each objective says, and how much a corpus holds, in words."""

from __future__ import annotations

from collections.abc import Mapping

from transformer import data


def spoken(measured: Mapping[str, float]) -> str:
    """The values of `training.evaluate` in a line."""
    parts = [f"loss {measured['loss']:.4f} nats per token", f"perplexity {measured['perplexity']:.2f}"]
    if "bits_per_byte" in measured:
        parts.insert(0, f"{measured['bits_per_byte']:.4f} bits per byte")
    if "accuracy" in measured:
        parts.append(f"accuracy {measured['accuracy']:.2%}")
    return ", ".join(parts)


def amount(corpus: data.Corpus | data.Bitext) -> str:
    """What there is to train on."""
    counts = corpus.counts["train"]
    if isinstance(corpus, data.Corpus):
        return f"{counts.documents:,} documents, {counts.bytes:,} bytes, {counts.tokens:,} tokens"
    unfit = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in ("left_out", "cut") if counts[name])
    pairs = f"{counts['pairs']:,} pairs" + (f" ({unfit})" if unfit else "")
    return f"{pairs}, {counts['source_tokens']:,} source and {counts['target_tokens']:,} target tokens"
