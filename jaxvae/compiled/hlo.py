"""Read the text of a compiled program (HLO, XLA's instructions): its kernels, collectives and bytes.

The text is what ``compiled.as_text()`` of `jax.jit` gives. On a GPU or TPU, an instruction that is left after XLA's
optimisations is a kernel, unless it only names or groups values.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

# Instructions that run nothing.
_FREE = frozenset(
    (
        *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id"),
        *("opt-barrier", "add-dependency", "domain"),
    )
)
_FREE_CALLS = frozenset(("AllocateBuffer", "Sharding", "AssumeGatherIndicesInBound", "annotate_device_placement"))
_GROUPS = frozenset(("while", "call", "conditional"))
_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_PARTS = frozenset(("dynamic-slice", "gather", "slice"))  # These read a part of their first operand.
_BITS = {"pred": 8, "token": 0, "opaque": 0}  # The others end in their number of bits.

_HEAD = re.compile(r"^(?:ENTRY )?%?(?P<name>[^\s(]+) (?:\(.*\) -> .*)?\{$")
_START = re.compile(r"^\s*(?P<root>ROOT )?%?(?P<name>\S+) = (?P<rest>.*)$")
_OPCODE = re.compile(r"^(?P<opcode>[a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b(?P<dtype>[a-z]+\d*[a-z\d]*)\[(?P<sizes>[\d,<= ]*)\]")
_SINGLE = re.compile(r"^[a-z]+\d*\[(1(,1)*)?\]")
_OPERAND = re.compile(r"%(?P<name>[\w.\-]+)|(?:^|, |\} |\] )(?P<bare>[a-zA-Z_][\w.\-]*)(?=,|$)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TARGET = re.compile(r'\bcustom_call_target="([^"]*)"')
_BEFORE = re.compile(r"\bcontrol-predecessors=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      name: unique in its module.
      shape: the text of its shape, such as ``f32[32,784]{1,0}`` or a tuple of them.
      opcode: such as ``fusion``.
      operands: the names of the instructions whose values it takes.
      after: the names of others that it waits for.
      called: the computations it calls, by role, such as ``{"body": ..., "condition": ...}``.
      target: of a custom call, what it calls; else "".
      trips: of a loop, its number of turns if XLA knows it; else None.
      is_root: whether its value is that of the computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    after: tuple[str, ...]
    called: Mapping[str, str]
    target: str
    trips: int | None
    is_root: bool


class Kernel(NamedTuple):
    """What runs on the device at once.

    Attributes:
      name: of its instruction.
      kind: the opcode, or what a custom call calls.
      times: how often it runs in a turn: more than once within an inner loop.
      read: bytes each time, of what it needs.
      written: bytes each time.
    """

    name: str
    kind: str
    times: int
    read: int
    written: int

    @property
    def nbytes(self) -> int:
        """Bytes read and written, each time."""
        return self.read + self.written

    @property
    def is_collective(self) -> bool:
        """Whether devices exchange something."""
        return self.kind.removesuffix("-start") in _COLLECTIVES


class Program:
    """A compiled program.

    Args:
      text: its HLO.

    Raises:
      ValueError: there is no computation in it.
    """

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            head = _HEAD.match(line)
            if head and " = " not in line.partition("(")[0]:
                current = self._computations[head["name"]] = {}
            elif start := _START.match(line):
                instruction = _instruction(start["name"], start["rest"], start["root"] is not None)
                current[instruction.name] = instruction
        if not self._computations:
            raise ValueError("the text holds no computation of HLO")

    @cached_property
    def loops(self) -> Mapping[str, int]:
        """The bodies of all loops, and the turns of each; 1 if XLA does not know them."""
        every = (each for computation in self._computations.values() for each in computation.values())
        return {each.called["body"]: each.trips or 1 for each in every if each.opcode == "while"}

    def step(self) -> str:
        """The computation that takes a training step: the body of the loop that runs most kernels of its own.

        Raises:
          ValueError: there is no loop.
        """
        if not self.loops:
            raise ValueError("the program has no loop, so no step is found in it")
        runs = {body: sum(1 for _ in self.kernels(body, inner_loops=False)) for body in self.loops}
        return max(runs, key=lambda body: runs[body] * self.loops[body])

    def kernels(self, computation: str, inner_loops: bool = True) -> Iterator[Kernel]:
        """The kernels that a computation runs, those of a conditional's every branch included."""
        for each in self._computations[computation].values():
            if each.opcode == "while" and not inner_loops:
                continue
            if each.opcode in _GROUPS:
                trips = (each.trips or 1) if each.opcode == "while" else 1
                for called in each.called.values():
                    for kernel in self.kernels(called, inner_loops):
                        yield kernel._replace(times=kernel.times * trips)
            elif self._runs(computation, each):
                read, written = self._bytes(computation, each)
                yield Kernel(each.name, each.target or each.opcode, 1, read, written)

    def chain(self, computation: str) -> int:
        """The most kernels that must run one after another: each needs the one before it."""
        own = self._computations[computation]
        longest: dict[str, int] = {}
        for each in own.values():  # In the text, what is needed comes first.
            before = max((longest.get(name, 0) for name in (*each.operands, *each.after)), default=0)
            length = int(self._runs(computation, each))
            if each.opcode in _GROUPS:
                length = max(map(self.chain, each.called.values()), default=0)
                length *= (each.trips or 1) if each.opcode == "while" else 1
            longest[each.name] = before + length
        return max(longest.values(), default=0)

    def _runs(self, computation: str, each: Instruction) -> bool:
        """Whether an instruction is a kernel."""
        if each.opcode == "custom-call":
            return each.target not in _FREE_CALLS
        if each.opcode in _FREE or each.opcode in _GROUPS or each.opcode.endswith(("-done", "-update")):
            return False  # The end of what runs beside others is not another kernel.
        # A TPU computes single numbers beside its kernels.
        own = self._computations[computation]
        shapes = [each.shape, *(own[name].shape for name in each.operands if name in own)]
        return each.opcode in ("fusion", *_COLLECTIVES) or not all(map(_SINGLE.match, shapes))

    def _bytes(self, computation: str, each: Instruction) -> tuple[int, int]:
        """Bytes that an instruction reads and writes."""
        own = self._computations[computation]
        operands = [own[name].shape for name in each.operands if name in own]
        if each.opcode in _PARTS and operands:
            return nbytes(each.shape) + sum(map(nbytes, operands[1:])), nbytes(each.shape)
        if each.opcode == "dynamic-update-slice" and len(operands) > 1:
            return sum(map(nbytes, operands[1:])), nbytes(operands[1])
        if each.opcode == "fusion" and (fused := self._computations.get(each.called.get("calls", ""))):
            return _read(fused), sum(_written(fused, root) for root in fused.values() if root.is_root)
        return sum(map(nbytes, operands)), nbytes(each.shape)


def nbytes(shape: str) -> int:
    """Bytes of a shape as HLO writes it, ``f32[32,784]{1,0}`` or a tuple ``(f32[2], s32[])``; layouts are ignored."""
    total = 0.0
    for array in _ARRAY.finditer(shape):
        dtype = array["dtype"]
        bits = _BITS.get(dtype)
        if bits is None:
            number = re.search(r"\d+", dtype)  # f32, bf16, s8, f8e4m3, c64
            bits = int(number[0]) if number else 0
        total += bits / 8 * math.prod(int(size.strip("<= ")) for size in array["sizes"].split(",") if size.strip())
    return math.ceil(total)


def _read(fused: Mapping[str, Instruction]) -> int:
    """Bytes that a fusion reads: of what it takes only parts of, those parts; of what it updates in place, nothing."""
    total = 0
    for parameter in (each for each in fused.values() if each.opcode == "parameter"):
        users = [each for each in fused.values() if parameter.name in each.operands]
        first = [
            each for each in users if each.operands[0] == parameter.name and parameter.name not in each.operands[1:]
        ]
        if users and len(first) == len(users) and all(each.opcode in _PARTS for each in users):
            total += min(nbytes(parameter.shape), sum(nbytes(each.shape) for each in users))
        elif len(first) == len(users) and users and all(each.opcode == "dynamic-update-slice" for each in users):
            continue
        else:
            total += nbytes(parameter.shape)
    return total


def _written(fused: Mapping[str, Instruction], root: Instruction) -> int:
    """Bytes that a fusion writes: of an array it updates in place, the update."""
    if root.opcode == "tuple":
        return sum(_written(fused, fused[name]) for name in root.operands if name in fused)
    if root.opcode == "bitcast" and root.operands and root.operands[0] in fused:
        return _written(fused, fused[root.operands[0]])
    if root.opcode == "dynamic-update-slice" and len(root.operands) > 1 and root.operands[1] in fused:
        return nbytes(fused[root.operands[1]].shape)
    return nbytes(root.shape)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    """The instruction of a line, from what follows its `=`."""
    shape, rest = _shape(rest)
    opcode = _OPCODE.match(rest)
    if opcode is None:
        raise ValueError(f"no instruction of HLO: {name} = {shape} {rest[:80]}")
    operands, attributes = _balanced(rest[opcode.end() - 1 :])
    names = () if opcode["opcode"] in ("constant", "parameter") else _names(operands[1:-1])
    called = dict(_CALLED.findall(attributes))
    if branches := _BRANCHES.search(attributes):
        called |= {f"branch {i}": each for i, each in enumerate(_names(branches[1]))}
    trips, target, before = _TRIPS.search(attributes), _TARGET.search(attributes), _BEFORE.search(attributes)
    return Instruction(
        name=name,
        shape=shape,
        opcode=opcode["opcode"],
        operands=names,
        after=_names(before[1]) if before else (),
        called=called,
        target=target[1] if target else "",
        trips=int(trips[1]) if trips else None,
        is_root=is_root,
    )


def _shape(text: str) -> tuple[str, str]:
    """The shape that a text begins with, and the rest of it."""
    if text.startswith("("):
        shape, rest = _balanced(text)
        return shape, rest.lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def _balanced(text: str) -> tuple[str, str]:
    """The text up to the bracket that closes its first character, and the rest."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: index + 1], text[index + 1 :]
    raise ValueError(f"a bracket is not closed: {text[:80]}")


def _names(text: str) -> tuple[str, ...]:
    """The names of instructions in a list: `%a.1, %b`, `f32[2] %a.1, f32[2] %b`, or the same without the signs."""
    return tuple(found["name"] or found["bare"] for found in _OPERAND.finditer(re.sub(r"/\*.*?\*/", "", text)))
