import pytest

from transformer.training import skipping


def test_roll_backs_are_written_down_and_read_again(tmp_path):
    skipped = skipping.load(tmp_path)
    assert skipped.jumps == [] and skipped.after(6) == 6
    skipped.add(6, 10)
    skipped.add(6, 13)
    skipped.add(6, 13)  # a process ended before its next checkpoint, and came to the same
    assert skipping.load(tmp_path).jumps == [(6, 10), (6, 13)]
    again = skipping.load(tmp_path, saved=[[2, 4], [6, 10]])
    assert again.jumps == [(2, 4), (6, 10), (6, 13)]
    assert [again.after(step) for step in (1, 2, 3, 6)] == [1, 4, 3, 13]


def test_those_of_a_future_that_was_left_do_not_count(tmp_path):
    skipped = skipping.load(tmp_path, saved=[[2, 4], [6, 10]], until=5)
    assert skipped.jumps == [(2, 4)]
    skipping.Skipped(tmp_path / skipping.FILE, [(6, 10)]).write()
    skipping.Skipped(tmp_path / skipping.FILE).write()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_said(tmp_path):
    (tmp_path / skipping.FILE).write_text("{")
    with pytest.raises(ValueError, match=r"skipped.json is damaged: repair it, or move it away"):
        skipping.load(tmp_path)
