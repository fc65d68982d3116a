"""What each attention may see."""

from __future__ import annotations

import numpy as np

from tests.inspection.explorer.reader import visible, walk


def test_what_each_stack_may_see(described):
    places = np.arange(9)
    distance = places[:, None] - places
    windows = described("windows").subject
    (decoder,) = windows.attentions
    np.testing.assert_array_equal(
        decoder.visible(windows.config, 9, 9), [(distance >= 0) & (distance < 2), distance >= 0]
    )
    encoder, decoder, cross = (visible(part, keys) for *_, part, _, keys in walk(described, "both norms"))
    assert encoder.all() and cross.all() and encoder.shape == (1, 7, 7) and cross.shape == (1, 5, 7)
    np.testing.assert_array_equal(decoder, [np.tri(5, dtype=bool)])
