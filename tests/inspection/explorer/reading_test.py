from __future__ import annotations

import numpy as np
import pytest

from transformer.inspection.explorer import Reading
from transformer.models.config import Attention, ModelConfig, Position, Stack

LEARNED = Stack(1, Attention(2), position=Position("learned"))


@pytest.mark.parametrize("length, width", [(1, 16), (16, 16), (17, 32)])
def test_lengths_are_rounded_up_and_masks_tell_what_is_real(length, width):
    config = ModelConfig(vocab=9, width=8, decoder=Stack(1, Attention(2)))
    inputs = Reading("", (5,) * length).inputs(config)
    assert set(inputs) == {"tokens", "mask", "positions"}
    assert all(array.shape == (1, width) for array in inputs.values())
    assert inputs["tokens"].tolist() == [[5] * length + [0] * (width - length)]
    assert inputs["mask"].tolist() == [[True] * length + [False] * (width - length)]
    # No position is beyond the text's own: some rotary frequencies depend on the largest.
    assert inputs["positions"].tolist() == [[*range(length), *[length - 1] * (width - length)]]


def test_learned_positions_are_not_exceeded():
    config = ModelConfig(vocab=9, width=8, length=20, decoder=LEARNED)
    assert Reading("", (1,) * 18).inputs(config)["tokens"].shape == (1, 20)
    Reading("", (1,) * 20).check(config, 512)
    with pytest.raises(ValueError, match="shows 1 to 20"):
        Reading("", (1,) * 21).check(config, 512)


def test_an_encoder_reads_the_source_only_beside_a_decoder():
    stack = Stack(1, Attention(2))
    alone, both = (ModelConfig(9, 8, encoder=stack, decoder=decoder) for decoder in (None, stack))
    assert Reading("", (1, 2)).sides(alone) == {"encoder": (1, 2)}
    reading = Reading("", (1, 2), "", (3, 4, 5))
    assert reading.sides(both) == {"decoder": (1, 2), "encoder": (3, 4, 5)}
    inputs = reading.inputs(both)
    assert set(inputs) == {"tokens", "mask", "positions", "source", "source_mask", "source_positions"}
    assert [int(inputs[name].sum()) for name in ("mask", "source_mask")] == [2, 3]
    assert all(array.dtype in (np.int32, bool) for array in inputs.values())


def test_the_place_is_the_last_one_unless_told():
    assert Reading("", (1, 2, 3)).place == 2 and Reading("", (1, 2, 3), position=0).place == 0
