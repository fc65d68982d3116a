"""Count a model's parameters and floating-point operations, by formula.

    python -m experiments.count                                # the names of all models
    python -m experiments.count --model=gpt3-175b
    python -m experiments.count --model=llama3-8b --length=8192 --json

Nothing is allocated, so every model can be counted on any machine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command
from transformer import models

MODEL = flags.DEFINE_string("model", None, "The model's name; without one, all names are listed.")
LENGTH = flags.DEFINE_integer(
    "length", None, "Tokens in the sequence whose operations are counted; default: the model's."
)
JSON = flags.DEFINE_boolean("json", False, "Print JSON in the place of tables.")

# Wide enough for the longest row, where no terminal sets the width.
PIPE_WIDTH = 160


def main() -> None:
    if MODEL.value is None:
        print(json.dumps(models.names()) if JSON.value else "\n".join(models.names()))
        return
    config = models.get(MODEL.value)
    book, length = models.ledger(config), config.length if LENGTH.value is None else LENGTH.value
    account = summary(MODEL.value, book, length)
    if JSON.value:
        print(json.dumps(account, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table(f"{MODEL.value}: every parameter", book, "total"))
    console.print(table("The tally of the explainers: matrices, with the unembedding apart", book.tally, "tally"))
    console.print(operations(account["flops_per_token"], length))


def summary(name: str, book: models.Ledger, length: int) -> dict[str, Any]:
    """What `--json` prints."""
    tally = book.tally
    counted = {"halves": _dictionaries(halves(tally)), "total": tally.total, "active": tally.active}
    return {
        "model": name,
        "rows": _dictionaries(book.rows),
        "total": book.total,
        "active": book.active,
        "tally": {"rows": _dictionaries(tally.rows), **counted},
        "length": length,
        "flops_per_token": {
            "all_keys": book.flops_per_token(length)._asdict(),
            "causal": book.flops_per_token(length, causal=True)._asdict(),
        },
    }


def halves(book: models.Ledger) -> list[models.Row]:
    """The sums over each half of a block, stack by stack: attention, cross-attention, feed-forward."""
    parts = [row.part.split("/") for row in book.rows]
    paths = dict.fromkeys("/".join(steps[:3]) for steps in parts if steps[1:2] == ["blocks"])
    return [book.subtotal(path) for path in paths]


def table(title: str, book: models.Ledger, last: str) -> Table:
    """Each row's part, formula and counts, the sums over each half of a block if `last` is "tally", and the total."""
    out = Table(title=title, title_justify="left", title_style="bold")
    out.add_column("part", overflow="fold")
    out.add_column("formula", overflow="fold")
    for name in ("per head", "per block", "in all"):
        out.add_column(name, justify="right", overflow="fold")
    for row in book.rows:
        out.add_row(row.part, row.formula, _number(row.per_head), _number(row.per_block), _number(row.count))
    if last == "tally":
        out.add_section()
        for row in halves(book):
            out.add_row(row.part, "", _number(row.per_head), _number(row.per_block), _number(row.count))
    out.add_section()
    out.add_row(last, "", "", "", _number(book.total), style="bold")
    if book.active != book.total:
        out.add_row("active for one token", "", "", "", _number(book.active), style="bold")
    return out


def operations(flops: dict[str, dict[str, float]], length: int) -> Table:
    """Floating-point operations for each token."""
    out = Table(title=f"Operations per token at length {length:,}", title_justify="left", title_style="bold")
    out.add_column("keys counted")
    for name in ("forward", "training"):
        out.add_column(name, justify="right")
    names = {"all_keys": "all, as for utilisation", "causal": "those that masks leave"}
    for counted, row in flops.items():
        out.add_row(names[counted], f"{row['forward']:.4e}", f"{row['training']:.4e}")
    return out


def _dictionaries(rows: Iterable[models.Row]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(row) for row in rows]


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


if __name__ == "__main__":
    command.run(main)
