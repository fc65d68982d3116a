import json

import pytest

from tests.faults import filling


def written(*rows):
    return [json.dumps(dict(zip(("fault", "happens", "seconds"), row, strict=True))) for row in rows]


ALL = [(f"{fault} ...", "survives", 1.0) for fault in filling.FAULTS]


def test_the_table_is_filled_between_its_marks_and_again():
    lines = written(("a", "x", 1.0), ("b", "y", 2.0), *ALL, ("a", "z", 3.0))
    readme = f"before\n{filling.BEGIN}\nold\n{filling.END}\nafter\n"
    filled = filling.fill(readme, lines)
    assert filled == filling.fill(filled, lines)
    assert filled.startswith(f"before\n{filling.BEGIN}\n| fault |") and filled.endswith(f"{filling.END}\nafter\n")
    assert "| a | z | 3.0 |\n| b | y | 2.0 |" in filled and "old" not in filled


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="no place for the table"):
        filling.fill("nothing", written(*ALL))


def test_a_part_of_the_rows_is_refused():
    with pytest.raises(ValueError, match="no rows begin with 'a full disk', 'a read-only disk': run all"):
        filling.fill(f"{filling.BEGIN}{filling.END}", written(*ALL[:-2]))
