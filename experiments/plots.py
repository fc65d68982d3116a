"""What the plots of experiments share: the library, loaded when one is wanted, and one look."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008: for every eye
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


def library() -> ModuleType:
    """Matplotlib, drawing into files; ValueError, naming the extra, if it is not installed."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        message = "plots needs matplotlib: pip install 'transformer-research[plots]', or draw nothing with --plot="
        raise ValueError(message) from None
    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)
    return importlib.import_module("matplotlib.pyplot")


def check(path: str | Path) -> None:
    """Raises ValueError unless a plot can be drawn into this file."""
    known = library().gcf().canvas.get_supported_filetypes()
    library().close()
    if Path(path).suffix[1:].lower() not in known:
        raise ValueError(f"--plot={path} has no ending of a picture: choose one of {', '.join(sorted(known))}")
    there = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if Path(path).is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--plot={path} cannot be written: name a file in a folder that can")


def save(figure: Any, path: str | Path) -> None:
    """Writes a figure, in the format that the path ends in, into a folder that is made if need be; then forgets it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    library().close(figure)
