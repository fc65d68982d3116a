"""How fast the data pipeline is by itself, with no model behind it.

    python -m experiments.benchmarks.data [--path=stdlib] [--length=256] [--batch_size=32] [--segments]

Method: the corpus is prepared in a new folder and again in the same one, each timed once by the wall clock. The first
time reads the source, trains the tokenizer and tokenises; the second reads and hashes the source. Then one consumer
asks for training batches as fast as they come: after one batch to warm up, tokens are counted for `--seconds`,
`--repeats` times over, and the median, the lowest and the highest rate are printed. One process, no prefetching; a
batch counts when it is in host memory.
"""

from __future__ import annotations

import statistics
import tempfile
import time

from absl import flags

from experiments import command
from transformer import data

_DEFAULTS = data.Data()
_PATH = flags.DEFINE_string("path", _DEFAULTS.path, "'stdlib', a text file, a folder of text files or 'tfds:NAME'.")
_LENGTH = flags.DEFINE_integer("length", _DEFAULTS.length, "Tokens a row predicts.")
_TOKENIZER = flags.DEFINE_enum("tokenizer", "bytes", data.TOKENIZERS, "What turns text into tokens.")
_SPLIT = flags.DEFINE_enum("split", _DEFAULTS.split, data.SPLITS, "How validation text is held out.")
_SEGMENTS = flags.DEFINE_bool("segments", _DEFAULTS.segments, "Add segments and positions to each batch.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows of a batch.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "How long each repeat measures.", lower_bound=0.01)
_REPEATS = flags.DEFINE_integer("repeats", 5, "How often to measure.", lower_bound=1)


def main() -> None:
    """Prepares the corpus twice, then measures batches; prints one line each."""
    config = data.Data(
        path=_PATH.value,
        length=_LENGTH.value,
        split=_SPLIT.value,
        segments=_SEGMENTS.value,
        tokenizer=data.Tokenizer(_TOKENIZER.value),
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in ("prepare, new folder", "prepare, same folder"):
            begin = time.perf_counter()
            corpus = data.prepare(config, f"{folder}/corpus")
            print(f"{name}: {time.perf_counter() - begin:.2f} s")
        print(f"training stream: {len(corpus.train):,} tokens, {corpus.bytes_per_token:.2f} bytes each")
        speeds = [
            data.pipeline_speed(data.batches(corpus, batch_size=_BATCH_SIZE.value, seed=0), seconds=_SECONDS.value)
            / 1e6
            for _ in range(_REPEATS.value)
        ]
    median = statistics.median(speeds)
    print(f"batches: {median:.1f} million tokens/s (lowest {min(speeds):.1f}, highest {max(speeds):.1f})")


if __name__ == "__main__":
    command.run(main)
