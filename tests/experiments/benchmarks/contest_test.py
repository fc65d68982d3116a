import pathlib
import sys

import pytest

from experiments.benchmarks import contest
from experiments.benchmarks.contest import Case, Program, Settings


class Counter:
    """In a worker's place: it takes so many seconds more each time, and writes down who was asked."""

    def __init__(self, program, case, settings, folder, asked):
        assert pathlib.Path(folder).is_dir()
        if program.name == "broken":
            raise contest.Failure("InductorError: no C++ compiler")
        self.name, self.asked, self.count = program.name, asked, 0

    def seconds(self):
        self.asked.append(self.name)
        self.count += 1
        if self.name == "dies" and self.count == 2:
            raise contest.Failure("its process ended")
        return float(self.count)

    def memory(self):
        return 7

    def noted(self):
        return {"accepted": 0.5}

    def end(self):
        self.asked.append(f"end {self.name}")


@pytest.fixture
def asked(monkeypatch):
    names = []
    monkeypatch.setattr(contest, "Worker", lambda *arguments: Counter(*arguments, asked=names))
    return names


def case(*names, **options):
    return Case("work", "float32", [Program(name, "x:y") for name in names], 1, "steps", **options)


def test_programs_take_turns_and_another_one_begins_each_time(asked):
    results = contest.run(case("ours", "a", "b"), Settings(), repeats=3)
    assert asked == ["ours", "a", "b", "a", "b", "ours", "b", "ours", "a", "end b", "end a", "end ours"]
    assert all(result.seconds == [1.0, 2.0, 3.0] and result.memory == 7 for result in results)
    assert all(result.noted == {"accepted": 0.5} for result in results)


def test_what_cannot_start_or_dies_is_left_out_and_the_others_go_on(asked):
    ours, broken, dies = contest.run(case("ours", "broken", "dies"), Settings(), repeats=3)
    assert ours.seconds == [1.0, 2.0, 3.0] and not ours.failure
    assert broken.failure == "failed: InductorError: no C++ compiler" and not broken.seconds
    assert dies.failure == "failed: its process ended" and asked.count("dies") == 2


def test_it_is_said_where_too_little_memory_is_left(asked, monkeypatch):
    assert 0 < contest.memory_left() <= 1
    said = []
    monkeypatch.setattr(contest, "memory_left", lambda: 0.04)
    contest.run(case("ours"), Settings(), repeats=1, say=said.append)
    assert said[-1] == "work, float32: 4% of memory is left, so times are too long: see --programs"


def test_a_case_may_ask_for_fewer_timings_than_the_command_line(asked):
    (result,) = contest.run(case("ours", repeats=2), Settings(), repeats=5)
    assert result.seconds == [1.0, 2.0]


def test_a_program_may_ask_for_fewer_than_its_case(asked):
    programs = [Program("ours", "x:y"), Program("slow", "x:y", repeats=1)]
    ours, slow = contest.run(Case("work", "float32", programs, 1, "steps", repeats=3), Settings(), repeats=5)
    assert (ours.seconds, slow.seconds) == ([1.0, 2.0, 3.0], [1.0])


@pytest.mark.slow
def test_what_a_program_notes_comes_back(tmp_path):
    arguments = {"tiny": True, "tokens": 4, "precision": "float32", "device": "cpu", "proposals": 2}
    program = Program("ours", "serving:our_draft", arguments, ("transformer.decoding",))
    (result,) = contest.run(Case("work", "float32", [program], 4, "tokens"), Settings(tiny=True), 1)
    assert result.noted == {"accepted": 1.0} and len(result.seconds) == 1


def test_a_missing_peer_is_named_and_how_to_get_it(asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # what an import finds where it is not installed
    programs = [Program("ours", "x:y", needs=("json",)), Program("torch", "x:y", needs=("json", "torch"))]
    ours, torch = contest.run(Case("work", "float32", programs, 1, "steps"), Settings(), repeats=1)
    assert ours.seconds and not torch.seconds
    assert torch.failure == "torch: not installed, left out: pip install 'transformer-research[oracle]'"
    assert asked == ["ours", "end ours"]


def test_a_program_that_is_known_not_to_fit_is_not_started(asked):
    (result,) = contest.run(Case("work", "float32", [Program("ours", "x:y", absent="too long")], 1, "x"), Settings(), 1)
    assert result.failure == "too long" and not asked


def test_only_what_is_called_ours_is_ours():
    assert [Program(name, "x:y").ours for name in ("ours", "ours, chunked", "torch")] == [True, True, False]
