"""Fills the table of faults in `launch/README.md` with what the tests wrote.

FAULTS_TABLE=/tmp/faults.jsonl make test ARGS="tests/faults -n 0 -m 'slow or not slow'"
python tests/faults/filling.py /tmp/faults.jsonl
"""

import json
import pathlib
import re
import sys

README = pathlib.Path(__file__).resolve().parents[2] / "launch" / "README.md"
# What faults begin with: every one has a row.
FAULTS = (
    "SIGKILL at 1 ", "SIGKILL at 20 ", "SIGKILL of a worker", "SIGKILL of the coordinator",
    "SIGTERM to one", "SIGINT to one", "SIGUSR1 to one", "SIGUSR1, SIGTERM or Ctrl-C",
    "an exception in one", "a hang in one", "other devices", "two runs in one directory",
    "NaN in one batch", "NaN in several batches", "NaN in every batch", "a bit flipped",
    "each file of a checkpoint", "every checkpoint damaged", "a full disk", "a read-only disk",
)  # fmt: skip
BEGIN, END = "<!-- faults: filled by tests/faults/filling.py -->", "<!-- end of faults -->"


def table(lines):
    """A row for each fault, the last that was measured, in the order in which they came first."""
    rows = {row["fault"]: row for row in map(json.loads, lines)}
    text = ["| fault | what happens | seconds |", "| --- | --- | --- |"]
    return "\n".join(text + [f"| {row['fault']} | {row['happens']} | {row['seconds']} |" for row in rows.values()])


def fill(readme, lines):
    """The text of a README with the table between its two marks.

    Raises:
      ValueError: if the marks are not there, or faults are missing, as after a part of the tests.
    """
    lines = list(lines)
    known = [json.loads(line)["fault"] for line in lines]
    missing = [fault for fault in FAULTS if not any(one.startswith(fault) for one in known)]
    if missing:
        raise ValueError(
            f"no rows begin with {', '.join(map(repr, missing))}: run all tests of faults, the slow ones too"
        )
    if not (BEGIN in readme and END in readme):
        raise ValueError(f"launch/README.md has no place for the table: put {BEGIN} and {END} into it")
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{table(lines)}\n{END}", readme, flags=re.S
    )


if __name__ == "__main__":
    README.write_text(fill(README.read_text(), pathlib.Path(sys.argv[1]).read_text().splitlines()))
