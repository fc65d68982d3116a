"""Every answer of a task is what another computation says, and every pair is a function of its place alone."""

from __future__ import annotations

import datetime
import re

import numpy as np
import pytest

from transformer.data import tasks

FORMS = (
    *("%d %B %Y", "%B %d, %Y", "%d %b %Y", "%b %d, %Y"),
    *("%d-%b-%Y", "%A, %d %B %Y", "%a, %B %d, %Y"),
)


def _generated(*arguments):
    return [(source, target) for _, source, target in tasks.generate(*arguments)]


@pytest.mark.parametrize(
    ("name", "answer"),
    [("copy", str), ("reverse", lambda text: "".join(reversed(text))), ("sort", lambda text: "".join(sorted(text)))],
)
def test_letters(name, answer):
    found = _generated(name, 2000)
    assert all(target == answer(source) for source, target in found)
    assert all(re.fullmatch("[a-z]{1,16}", source) for source, _ in found)
    # 26 letters and 16 lengths: 2000 draws miss one of them once in 10^50 at most.
    assert len(set("".join(source for source, _ in found))) == 26
    assert {len(source) for source, _ in found} == set(range(1, 17))
    assert name == "copy" or any(source != target for source, target in found)


def test_the_longest_numbers_can_be_written():
    (_, source, target), *_ = tasks.generate("addition", 1, 4000, 4000)
    assert len(source) > 4001 and len(target) >= 4000


@pytest.mark.parametrize("bounds", [(), (1, 1), (3, 3), (2, 30)])
def test_addition(bounds):
    shortest, longest = bounds or (1, 4)
    lengths, sides = set(), set()
    for source, target in _generated("addition", 500, *bounds):
        left, right = source.split("+")
        assert int(target) == int(left) + int(right)
        assert all(str(int(number)) == number for number in (left, right, target))
        lengths.add(max(len(left), len(right)))
        sides.add(len(left) > len(right))
    assert lengths == set(range(shortest, longest + 1))
    assert longest == 1 or sides == {True, False}


def test_dates_have_several_forms_and_one_reading():
    forms = set()
    for source, target in _generated("dates", 1000):
        read = {}
        for form in FORMS:
            try:
                read[form] = datetime.datetime.strptime(source, form).date().isoformat()
            except ValueError:
                continue
        assert set(read.values()) == {target}
        # May is its own abbreviation; a day under ten is read with and without its zero.
        forms |= set(read) if len(read) == 1 else set()
        day = datetime.date.fromisoformat(target)
        assert 1900 <= day.year <= 2099
        if "," in source.partition(" ")[0]:  # `strptime` reads the name of a weekday without comparing it
            assert source.startswith(day.strftime("%a"))
    assert forms == set(FORMS)


def test_dates_cover_months_days_and_years():
    days = [datetime.date.fromisoformat(target) for _, target in _generated("dates", 3000)]
    assert {day.month for day in days} == set(range(1, 13))
    assert {day.day for day in days} == set(range(1, 32))
    assert len({day.year for day in days}) == 200


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_pair_depends_on_its_place_alone(name):
    few, many = list(tasks.generate(name, 20)), list(tasks.generate(name, 50))
    assert many[:20] == few
    assert len(many) == 50
    assert [pair.name for pair in few[:2]] == [f"{name}, pair 1", f"{name}, pair 2"]
    np.random.seed(0)  # the global generator has no say
    assert list(tasks.generate(name, 20)) == few
    if tasks.RANGES[name]:
        assert list(tasks.generate(name, 20, *tasks.RANGES[name])) == few


def test_tasks_and_ranges_draw_differently():
    copied, reversed_, longer = (_generated(*each) for each in (("copy", 50), ("reverse", 50), ("copy", 50, 1, 17)))
    assert copied != longer
    assert [source for source, _ in copied] != [source for source, _ in reversed_]


def test_lengths_are_uniform():
    counts = np.bincount([len(source) for source, _ in _generated("copy", 4000, 3, 6)], minlength=7)
    assert counts[:3].sum() == 0
    # Five standard deviations of a binomial with n = 4000 and p = 1/4.
    np.testing.assert_allclose(counts[3:], 1000, atol=5 * (4000 * 0.25 * 0.75) ** 0.5)


def test_the_first_pairs_stay_what_they_were():
    """Runs on the same path go on with the same pairs; change this only where they shall not."""
    assert _generated("reverse", 2) == [("otqfvbnwprk", "krpwnbvfqto"), ("xu", "ux")]
    assert _generated("dates", 1) == [("Monday, 10 March 2003", "2003-03-10")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("revers", 5), "no task is called 'revers'; the nearest are reverse"),
        (("zzz", 5), "no task is called 'zzz'; the nearest are copy, reverse, sort, addition, dates"),
        (("dates", 5, 1, 2), "the task 'dates' has no lengths, but was asked for 1-2: leave them out"),
        (("copy", 5, 0, 3), "lengths 0-3 cannot work: give 1 or more first, such as 1-16"),
        (("addition", 5, 4, 3), "lengths 4-3 cannot work: give 1 or more first, such as 1-4"),
        (("addition", 5, 1, 4001), "lengths 1-4001 cannot work: the task 'addition' has at most 4000"),
        (("copy", 5, 1, 1_000_001), "lengths 1-1000001 cannot work: the task 'copy' has at most 1000000"),
        (("copy", 5, 4), "lengths 4-None cannot work: give 1 or more first, such as 1-16"),
    ],
)
def test_refuses_at_once(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tasks.generate(*arguments)
