"""The mathematics of a transformer: pure functions of arrays, which know nothing of modules, parameters or state.

Attention from scores to mixed values, the masks it takes, the ways a position is told, the routing of tokens to
experts, the losses that train and the filters that sample. Shapes are written in the legend of `transformer`;
normalisations run in float32 whatever the dtype that comes in.
"""

from transformer.ops import attention, losses, masks, positions, routing, sampling

__all__ = ["attention", "losses", "masks", "positions", "routing", "sampling"]
