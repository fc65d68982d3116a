"""The script in a process of its own: scripts define flags of the same names, so they cannot share one."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def count(*arguments):
    command = [sys.executable, "-m", "experiments.count", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_the_json_holds_the_ledger_and_the_tally():
    process = count("--model=gpt3-175b", "--json", "--length=2048")
    assert process.returncode == 0, process.stderr
    account = json.loads(process.stdout)
    assert account["total"] == sum(row["count"] for row in account["rows"]) == 174_604_259_328
    assert account["tally"]["total"] == sum(row["count"] for row in account["tally"]["rows"]) == 175_181_291_520
    attention, feed_forward = account["tally"]["halves"]
    assert attention["per_head"] == 6_291_456
    assert attention["per_block"] == 603_979_776
    assert feed_forward["count"] == 115_964_116_992
    assert account["flops_per_token"]["causal"]["forward"] < account["flops_per_token"]["all_keys"]["forward"]


def test_the_tables_print_every_digit_where_there_is_no_terminal():
    process = count("--model=gpt3-175b")
    assert process.returncode == 0, process.stderr
    printed = (
        "L·D·H·K = 96 x 12,288 x 96 x 128",
        "1,572,864",
        "6,291,456",
        "603,979,776",
        "57,982,058,496",
        "617,558,016",
    )
    for text in (*printed, "115,964,116,992", "175,181,291,520", "174,604,259,328", "at length 2,048"):
        assert text in process.stdout, text


def test_experts_are_counted_in_all_and_as_one_token_uses_them():
    process = count("--model=mixtral-8x7b")
    assert process.returncode == 0, process.stderr
    for text in ("46,702,792,704", "active for one token", "12,879,925,248", "L·N·D·F = 32 x 8 x 4,096 x 14,336"):
        assert text in process.stdout, text
    account = json.loads(count("--model=mixtral-8x7b", "--json").stdout)
    assert account["active"] == sum(row["active"] for row in account["rows"]) == 12_879_925_248
    assert "active for one token" not in count("--model=gpt2-small").stdout


def test_an_unknown_model_is_one_line_that_names_the_nearest():
    process = count("--model=gpt2-smal")
    assert (process.returncode, process.stdout) == (2, "")
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ")
    assert "gpt2-small" in line


def test_without_a_model_the_names_are_listed():
    process = count()
    assert process.returncode == 0, process.stderr
    assert {"gpt2-small", "t5-v1.1-base", "gemma-2b"} <= set(process.stdout.split())
