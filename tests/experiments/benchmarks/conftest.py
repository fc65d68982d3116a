"""Timings that nobody measured, so that what a report must say is known."""

import pytest

from experiments.benchmarks.contest import Case, Program, Result


@pytest.fixture
def case():
    """1,000 tokens, for which 6 GFLOP are needed."""
    programs = [Program("ours", "x:y"), Program("ours, chunked", "x:y"), Program("torch", "x:y", needs=("torch",))]
    return Case("work", "float32", [*programs, Program("flax", "x:y")], 1000, "tokens", flops=6e9)


@pytest.fixture
def results(case):
    """Medians of 0.2, 0.1, 0.3 and 0.15 seconds; the means would put the last two the other way round."""
    seconds = [[0.2, 0.1, 0.9], [0.1, 0.1, 0.1], [0.3, 0.3, 0.01], [0.15, 0.1, 9.0]]
    return [Result(program, times, 2_000_000) for program, times in zip(case.programs, seconds, strict=True)]
