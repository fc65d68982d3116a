"""What the text of a compiled program (XLA's HLO) says about the instructions that a trace only names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

import jax

HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = .*?\s([a-z][a-z0-9-]*)\(")
BODY = re.compile(r"\b(?:body|to_apply)=%?([\w.-]+)")
CALLS = re.compile(r"\bcalls=%?([\w.-]+)")
TARGET = re.compile(r'custom_call_target="([^"]*)"')
ORIGIN = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
OPERAND = re.compile(r"%([\w.-]+)")
FRAME = re.compile(r"stack_frame_id=(\d+)")

CONTROL = frozenset({"while", "conditional", "call", "async-start", "async-done"})
PRODUCTS = frozenset({"dot", "convolution", "ragged-dot"})
MOVES = frozenset(
    (
        "bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "copy", "copy-done", "copy-start",
        "dynamic-slice", "dynamic-update-slice", "get-tuple-element", "iota", "pad", "parameter", "reshape", "reverse",
        "slice", "transpose", "tuple",
    )
)  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective", "partition-id", "reduce-scatter")
HOST = ("infeed", "outfeed", "recv", "send", "memcpyh2d", "memcpyd2h")
ATTENTION = re.compile("attention|fmha|flash|splash")
# Kinds of instructions, from the one that gives a fusion its category to the one that hardly does.
KINDS = (
    ("random numbers", ("rng",)),
    ("sort", ("sort", "topk")),
    ("gather/scatter", ("gather", "scatter", "select-and-scatter")),
    ("reduction", ("reduce", "reduce-window")),
)
# Steps of a name that say how JAX got there, not which part of the model it is.
WRAPPERS = re.compile(
    r"jit\(.*\)|(jvp|transpose|vmap)\(.*|\w+\.\w+|while|body|cond|closed_call|eval_jaxpr|checkpoint|[A-Z]\w*"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program: the computation that it is in, its operation code, and the computation that it fuses."""

    within: str
    code: str
    fused: str | None
    target: str
    path: str
    frame: str | None


class Program:
    """A compiled program; without a text, all that is known is what the names of instructions tell."""

    def __init__(self, text: str = ""):
        self.instructions: dict[str, Instruction] = {}
        self._computations: dict[str, list[Instruction]] = {}
        self._callers: dict[str, Instruction] = {}  # by the computation that they repeat or call
        self._users: dict[str, str] = {}  # the first one of each
        self._sources = _sources(text)
        inside = ""
        for line in text.splitlines():
            if header := HEADER.match(line):
                inside = header[1]
            elif found := INSTRUCTION.match(line):
                name, code = found.groups()
                fused, body, target, path, frame = (
                    _first(pattern.search(line)) for pattern in (CALLS, BODY, TARGET, ORIGIN, FRAME)
                )
                instruction = Instruction(inside, code, fused, target or "", path or "", frame)
                self.instructions[name] = instruction
                self._computations.setdefault(inside, []).append(instruction)
                for operand in OPERAND.findall(line[found.end() :].partition(")")[0]):
                    self._users.setdefault(operand, name)
                if body and code in CONTROL:
                    self._callers[body] = instruction

    def control(self, name: str) -> bool:
        """Whether an instruction only runs others, which a trace lists too."""
        return self._code(name) in CONTROL

    def category(self, name: str) -> str:
        """What kind of work an instruction is; of a fusion, the kind that costs most in it."""
        within = self._within(name)
        codes, targets = {each.code for each in within}, " ".join(each.target for each in within).strip().lower()
        code = self._code(name)
        if code in CONTROL:
            return "control"
        if code.startswith(HOST):
            return "host"
        if code.startswith(COLLECTIVES):
            return "communication"
        if ATTENTION.search(targets):
            return "attention kernel"
        if codes & PRODUCTS or re.search(r"gemm|matmul|conv|dot", targets):
            return "matrix product"
        if targets and ATTENTION.search(within[0].path.lower()):
            return "attention kernel"
        for kind, members in KINDS:
            if codes & set(members) or targets.startswith(members):
                return kind
        if targets:
            return "other kernel"
        return "copy/transpose" if codes <= MOVES or code.startswith("memcpy") else "elementwise"

    def origin(self, name: str) -> str:
        """The part of the model that an instruction computes, or its line in the source where it has no name.

        A fusion is named after the matrix product in it, if there is one. What the compiler added or rewrote has lost
        its name, and is named after what its result is for, or after the loop that it is in.
        """
        if name not in self.instructions:
            return ""
        if place := self._named(name):
            return place
        user = name
        while user in self._users:
            user = self._users[user]
            if place := self._named(user):
                return f"for {place}"
        caller = self._callers.get(self.instructions[name].within)
        return "added by the compiler" + (f" in {self._place(caller)}" if caller is not None and caller.path else "")

    def _named(self, name: str) -> str | None:
        within = self._within(name)
        products = [each for each in within if each.code in PRODUCTS]
        for each in (*products, self.instructions[name], *reversed(within)):  # the last one fused gives the result
            if each.path:
                return self._place(each)
        return None

    def _place(self, instruction: Instruction) -> str:
        path, source = spoken(instruction.path), self._sources.get(instruction.frame)
        return path if source is None or "/" in path.split(" ", 1)[-1] else f"{path}, {source}"

    def _code(self, name: str) -> str:
        known = self.instructions.get(name)
        return re.sub(r"[.\d]+$", "", name).replace("_", "-").lower() if known is None else known.code

    def _within(self, name: str) -> list[Instruction]:
        """The instruction, then those that it fuses; none is a parameter."""
        if name not in self.instructions:
            return [Instruction("", self._code(name), None, "", "", None)]
        found = [self.instructions[name]]
        for each in found:  # grows meanwhile
            found.extend(self._computations.get(each.fused, ()))
        return [each for each in found if each.code not in ("fusion", "parameter")] or found


def live(name: str, instructions: Iterable[str]) -> Program:
    """Of the compiled programs of this process that are called so, the one that has most of these instructions."""
    wanted, client = set(instructions), jax.local_devices()[0].client
    texts = [
        module.to_string()
        for executable in client.live_executables()
        for module in executable.hlo_modules()
        if module.name == name
    ]
    return max(map(Program, texts), key=lambda program: len(wanted & program.instructions.keys()), default=Program())


def spoken(path: str) -> str:
    """A name that JAX gave, `jit(f)/transpose(jvp(Model))/decoder/while/body/mlp/up/dot_general`, without its detours.

    What is left begins with "backward" or "forward" where a derivative is taken: `backward decoder/mlp/up/dot_general`.
    """
    steps = path.split("/")
    kept = [step for step in steps[:-1] if not WRAPPERS.fullmatch(step)] + steps[-1:]
    way = "backward " if "transpose(" in path else "forward " if "jvp(" in path else ""
    return way + "/".join(kept)


def _sources(text: str) -> Mapping[str, str]:
    """From the number of a stack frame to its line, such as `optax/transform.py:12`."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', _section(text, "FileNames"), re.MULTILINE))
    places = {
        number: f"{'/'.join(PurePath(files[file]).parts[-2:])}:{line}"
        for number, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", _section(text, "FileLocations"), re.MULTILINE
        )
    }
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", _section(text, "StackFrames"), re.MULTILINE)
    return {frame: places[place] for frame, place in frames}


def _section(text: str, name: str) -> str:
    return text.partition(f"\n{name}\n")[2].partition("\n\n")[0]


def _first(found: re.Match | None) -> str | None:
    return None if found is None else found[1]
