"""Fills the table of faults in `launch/README.md` with what the tests wrote.

FAULTS_TABLE=/tmp/faults.jsonl make test ARGS="tests/faults -n 0 -m 'slow or not slow'"
python tests/faults/filling.py /tmp/faults.jsonl
"""

import json
import pathlib
import re
import sys

README = pathlib.Path(__file__).resolve().parents[2] / "launch" / "README.md"
BEGIN, END = "<!-- faults: filled by tests/faults/filling.py -->", "<!-- end of faults -->"


def table(lines):
    """A row for each fault, the last that was measured, in the order in which they came first."""
    rows = {row["fault"]: row for row in map(json.loads, lines)}
    text = ["| fault | what happens | seconds |", "| --- | --- | --- |"]
    return "\n".join(text + [f"| {row['fault']} | {row['happens']} | {row['seconds']} |" for row in rows.values()])


def fill(readme, lines):
    """The text of a README with the table between its two marks; raises ValueError if they are not there."""
    if not (BEGIN in readme and END in readme):
        raise ValueError(f"launch/README.md has no place for the table: put {BEGIN} and {END} into it")
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{table(lines)}\n{END}", readme, flags=re.S
    )


if __name__ == "__main__":
    README.write_text(fill(README.read_text(), pathlib.Path(sys.argv[1]).read_text().splitlines()))
