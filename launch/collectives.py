"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"= (.*?) ({KINDS})(-start)?\(")
CALLED = re.compile(r"\b(?:calls|body|to_apply|branch_computations|called_computations)=\{?((?:%?[\w.-]+(?:, )?)+)\}?")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"\b(pred|[a-z]+\d+(?:[a-z]\d\w*)?)\[([\d,]*)\]")
LIMIT = re.compile(r"compare\((?:\S+ )?%?[\w.-]+, (?:\S+ )?%?([\w.-]+)\), direction=LT")
CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
MESH = re.compile(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}")
IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")


class Collective(NamedTuple):
    """Collectives of one kind among groups of one size, in one run of a program."""

    kind: str
    group: int
    calls: int
    bytes: float  # that each device sends, by the best algorithm on a ring


def read(text: str, devices: int) -> list[Collective]:
    """The collectives of a compiled program (XLA's HLO) for so many devices, those that send most first.

    A loop's count as often as its text says that it runs, and once where that depends on numbers.
    """
    bodies: dict[str, list[str]] = {}
    entry = inside = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            inside = header[1]
            entry = inside if line.startswith("ENTRY") else entry
            bodies[inside] = []
        elif inside:
            bodies[inside].append(line)
    totals: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0.0])

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            if found := COLLECTIVE.search(line):
                # TPUs' compiler writes a reduce-scatter as a fusion of this name around an all-reduce.
                kind = "reduce-scatter" if "all-reduce-scatter" in name else found[2]
                group = _group(line, devices)
                entry = totals[kind, group]
                entry[0] += times
                entry[1] += times * _sent(found[2], kind, group, _bytes(found[1], bool(found[3])))
                continue  # what it calls adds two numbers
            for called in CALLED.findall(line):
                for each in called.split(", "):
                    visit(each.lstrip("%"), times * _trips(line, bodies))

    visit(entry, 1)
    found = [Collective(kind, group, int(calls), sent) for (kind, group), (calls, sent) in totals.items()]
    return sorted(found, key=lambda each: -each.bytes)


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often an instruction runs what it calls: a loop whose index rises to a constant, so often."""
    if known := TRIPS.search(line):
        return int(known[1])
    condition = CONDITION.search(line)
    for each in bodies.get(condition[1], ()) if condition else ():
        if limit := LIMIT.search(each):
            value = re.search(rf"%?{re.escape(limit[1])} = .* constant\((\d+)\)", "\n".join(bodies[condition[1]]))
            return int(value[1]) if value else 1
    return 1


def _sent(written: str, kind: str, group: int, size: int) -> float:
    """What each of a group sends, `size` being the bytes of the result that is written down."""
    others = (group - 1) / group
    if kind == "reduce-scatter" and written == "reduce-scatter":
        return size * (group - 1)  # each has a part of what was added up
    return {"all-reduce": 2 * others, "collective-permute": 1.0}.get(kind, others) * size


def _group(line: str, devices: int) -> int:
    if "source_target_pairs" in line:
        return 2
    if found := MESH.search(line):
        sizes = dict(item.split("=") for item in found[1].split(","))
        return math.prod(int(sizes[axis]) for axis in found[2].split(","))
    if found := IOTA.search(line):
        return int(found[2])
    if (found := LISTED.search(line)) and found[1]:
        return found[1].count(",") + 1
    return devices


def _bytes(result: str, starts: bool) -> int:
    sizes = [_size(kind, axes) for kind, axes in ARRAY.findall(result)]
    # A collective that is started gives what it takes and what it will give, and sometimes numbers to wait for.
    return max(sizes, default=0) if starts else sum(sizes)


def _size(kind: str, axes: str) -> int:
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
    size = 1
    for axis in filter(None, axes.split(",")):
        size *= int(axis)
    return size * bits // 8
