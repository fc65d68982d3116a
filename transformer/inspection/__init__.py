"""Read and replace what a model computes between tokens and logits.

logits, taps = inspection.run(model, params, tokens, capture=("decoder/*/pattern", "decoder/3/mlp/*"))
knocked_out, _ = inspection.run(model, params, tokens, patches=inspection.Patch("decoder/3/mixed", 0.0, head=5))
inspection.sites(model)  # every name, its axes and shape
"""

from transformer.inspection.run import run
from transformer.inspection.sites import Site, sites
from transformer.nn.tap import Patch, Taps

__all__ = ["Patch", "Site", "Taps", "run", "sites"]
