"""Read and replace what a model computes between tokens and logits.

logits, taps = inspection.run(model, params, tokens, capture=("decoder/*/pattern", "decoder/3/mlp/*"))
knocked_out, _ = inspection.run(model, params, tokens, patches=inspection.Patch("decoder/3/mixed", 0.0, head=5))
inspection.sites(model)  # every name, its axes and shape

`explorer`, the page, is imported by itself.
"""

from transformer.inspection import ablation, circuits, directions, lens, patterns, rows, vocabulary
from transformer.inspection.attribution import attribute
from transformer.inspection.captures import Capture
from transformer.inspection.names import tap_names
from transformer.inspection.paths import Node, path_patch
from transformer.inspection.run import run
from transformer.inspection.sites import Site, sites
from transformer.inspection.sweep import sweep
from transformer.nn.tap import Patch, Taps

__all__ = [
    "Capture",
    "Node",
    "Patch",
    "Site",
    "Taps",
    "ablation",
    "attribute",
    "circuits",
    "directions",
    "lens",
    "path_patch",
    "patterns",
    "rows",
    "run",
    "sites",
    "sweep",
    "tap_names",
    "vocabulary",
]
