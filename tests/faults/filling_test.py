import json

import pytest

from tests.faults import filling


def test_the_table_is_filled_between_its_marks_and_again():
    rows = [{"fault": "a", "happens": "x", "seconds": 1.0}, {"fault": "b", "happens": "y", "seconds": 2.0}]
    rows.append({"fault": "a", "happens": "z", "seconds": 3.0})
    lines = [json.dumps(row) for row in rows]
    readme = f"before\n{filling.BEGIN}\nold\n{filling.END}\nafter\n"
    filled = filling.fill(readme, lines)
    assert filled == filling.fill(filled, lines)
    assert filled.startswith(f"before\n{filling.BEGIN}\n| fault |") and filled.endswith(f"{filling.END}\nafter\n")
    assert "| a | z | 3.0 |\n| b | y | 2.0 |" in filled and "old" not in filled


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="no place for the table"):
        filling.fill("nothing", [])
