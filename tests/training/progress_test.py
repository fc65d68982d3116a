import io
import math

import pytest
from rich.console import Console

from transformer.training import Bar

VALUES = {"loss": 2.5, "nats": 2.0, "tokens_per_second": 12345.6}


def shown(terminal, *lines, start=0):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=150, highlight=False, color_system=None)
    with Bar(10, start, bytes_per_token=4.0, console=console) as bar:
        for step, values in lines:
            bar(step, values)
    return out.getvalue()


def test_away_from_a_terminal_only_evaluations_are_printed():
    assert shown(False, (1, VALUES)) == ""
    assert shown(False, (1, VALUES), (2, VALUES | {"validation_loss": 2.25, "validation_bits_per_byte": 0.75})) == (
        "step 2: loss 2.500, validation loss 2.2500, 0.7500 bits/byte, 12,346 tokens/s\n"
    )
    assert shown(False, (3, VALUES | {"validation_loss": 2.25})) == (
        "step 3: loss 2.500, validation loss 2.2500, 12,346 tokens/s\n"
    )


@pytest.mark.parametrize("start", [0, 4])
def test_a_terminal_shows_where_training_stands(start):
    before = shown(True, start=start)
    assert f"{start}/10" in before.replace(" ", "") and "loss -" in before
    after = shown(True, (7, VALUES), start=start)
    bits = 2.0 / math.log(2) / 4.0  # of nats, not of a loss that may hold smoothing
    assert "7/10" in after.replace(" ", "")
    assert f"loss 2.500 {bits:.3f} bits/byte 12,346 tokens/s" in after


def test_without_a_console_it_prints_to_standard_output(capsys):
    with Bar(2, 0, 1.0) as bar:
        bar(1, VALUES | {"validation_loss": 1.0})
    assert capsys.readouterr().out == "step 1: loss 2.500, validation loss 1.0000, 12,346 tokens/s\n"
