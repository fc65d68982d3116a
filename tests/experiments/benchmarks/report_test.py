import io

import pytest
from rich.console import Console

from experiments.benchmarks import ceilings, report
from experiments.benchmarks.contest import Case, Program, Result


def test_the_ratio_is_the_best_peers_median_over_ours():
    assert report.ratio([0.2, 0.1, 0.9], {"a": [0.3, 0.3, 0.01], "b": [0.15, 0.1, 9.0]}) == (0.15 / 0.2, "b")
    assert report.ratio([1.0, 3.0], {"a": [4.0]}) == (2.0, "a")  # the median of two is their mean
    assert report.ratio([1.0], {}) is None and report.ratio([1.0], {"failed": []}) is None


def test_rows_give_rates_shares_and_ratios_to_peers_but_not_to_ours(case, results):
    rows = report.rows(case, results, {"float32": 120e9, "memory": 1.0})
    assert [row["program"] for row in rows] == ["ours", "ours, chunked", "torch", "flax"]
    assert [row["median"] for row in rows] == [0.2, 0.1, 0.3, 0.15]
    assert [row["rate"] for row in rows] == pytest.approx([5000, 10_000, 1000 / 0.3, 1000 / 0.15])
    assert [row["share"] for row in rows] == pytest.approx([0.25, 0.5, 1 / 6, 1 / 3])
    assert {row["ceiling"] for row in rows} == {"products"}
    assert [(row.get("ratio"), row.get("against")) for row in rows[:2]] == [(0.15 / 0.2, "flax"), (0.15 / 0.1, "flax")]
    assert not any("ratio" in row for row in rows[2:])


def test_what_a_program_noted_is_in_its_row(case, results):
    results[0].noted = {"accepted": 0.96}
    row, other, *_ = rows = report.rows(case, results, {})
    assert row["accepted"] == 0.96 and "accepted" not in other
    Console(file=(stream := io.StringIO()), width=200).print(report.table(rows))
    assert "│ ours, 96% accepted " in stream.getvalue()


def test_what_failed_has_no_row_and_is_named_and_a_missing_package_is_said_once(case, results):
    results[1].failure = "failed: no compiler"
    results[2].failure = "torch: not installed, left out: pip install something"
    assert [row["program"] for row in report.rows(case, results, {})] == ["ours", "flax"]
    assert report.left_out(case, results) == [
        "work, float32, ours, chunked: failed: no compiler",
        "torch: not installed, left out: pip install something",
    ]


def test_the_table_shows_each_program_with_its_numbers(case, results):
    stream = io.StringIO()
    Console(file=stream, width=200).print(report.table(report.rows(case, results, {"float32": 120e9})))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in stream.getvalue().splitlines() if "│" in line]
    first = ["work", "float32", "ours", "200.0 ms", "100.0 ms", "900.0 ms", "5 ktokens/s", "25% products", "2 MB"]
    assert lines[0] == [*first, "0.75 (flax)"]
    assert [line[2] for line in lines] == ["ours", "ours, chunked", "torch", "flax"]
    assert lines[2][-1] == "-"


def test_ceilings_are_the_fastest_timing_of_either_library_and_decoding_is_held_to_the_memorys():
    def measured(name, precision, amount, *seconds):
        programs = [Program("jax", "x:y"), Program("torch", "x:y")]
        results = [Result(program, list(times)) for program, times in zip(programs, seconds, strict=True)]
        return Case(name, precision, programs, amount, "?"), results

    limits = ceilings.best(
        [
            measured(ceilings.PRODUCT, "float32", 100, (2.0, 4.0), (5.0, 1.0)),
            measured(ceilings.PRODUCT, "bfloat16", 100, (), (0.5,)),
            measured(ceilings.READ, "float32", 30, (3.0,), (6.0,)),
            measured("loss", "float32", 999, (1.0,), (1.0,)),
        ]
    )
    assert limits == {"float32": 100, "bfloat16": 200, "memory": 10}
    decoding = Case("decode", "bfloat16", [], 1, "tokens", traffic=40)
    assert ceilings.share(decoding, 8.0, limits) == (0.5, "memory")
    assert ceilings.share(Case("train", "bfloat16", [], 1, "tokens", flops=50), 1.0, limits) == (0.25, "products")
    assert ceilings.share(Case("saving", "float32", [], 1, "B"), 1.0, limits) is None
