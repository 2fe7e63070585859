"""How long a step takes, read from its schedule: the one model by which layouts are compared.

TPUs' compiler writes a program in the order in which it runs. One clock goes through that order:

- what computes takes what the compiler estimates of it, in cycles of the chip, as
  `ftjax.forecast.estimates` mends it; an attention kernel what `ftjax.forecast.kernels` says;
- a collective takes what `ftjax.forecast.interconnect` says; one at a time is under way. One that
  is started, or given to a sparse core, goes on while others compute, and holds the clock up where
  its result is asked for; any other holds it up from its beginning;
- copies between memories go on in the same way, between the main memory and the chip's own one by
  one, and with the machine's memory one by one; what other slices send comes over the network;
- the body of a loop takes each time what it takes once.

Nothing else is in it: no host, no data, no slower clock, and no bandwidth of the memory that
collectives take from what is computed beside them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jax.sharding import Mesh

from ftjax.forecast.chips import Chip, closed
from ftjax.forecast.estimates import CYCLES, line_seconds
from ftjax.forecast.groups import first_group
from ftjax.forecast.hlo import (
    COLLECTIVES,
    HOST,
    Instruction,
    nbytes,
    parse,
    trips_of,
)
from ftjax.forecast.interconnect import Torus
from ftjax.forecast.kernels import quantized_seconds, splash_seconds

Computations = Mapping[str, list[Instruction]]
COPIES = ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")


@dataclass
class Timeline:
    """Seconds and bytes of one run.

    Attributes:
        seconds: from beginning to end.
        computing: of them, in which anything is computed.
        waiting: of them, for collectives alone.
        copying: of them, for copies between memories.
        sent: bytes that collectives give.
        overlapped: of them, what is under way while anything is computed.
        kernels: of the seconds, in attention kernels.
    """

    seconds: float = 0.0
    computing: float = 0.0
    waiting: float = 0.0
    copying: float = 0.0
    sent: float = 0.0
    overlapped: float = 0.0
    kernels: float = 0.0

    def add(self, other: "Timeline", times: int) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)

    def compute(self, seconds: float) -> None:
        self.seconds += seconds
        self.computing += seconds


@dataclass
class Transfer:
    """Something under way.

    Attributes:
        end: when it is done.
        computing: of the timeline, when it began.
        sent: bytes, of a collective; None for a copy.
    """

    end: float
    computing: float
    sent: float | None = None


@dataclass(frozen=True)
class Machine:
    """What a program is compiled for."""

    chip: Chip
    torus: Torus

    @classmethod
    def of(cls, topology: str, chip: Chip, mesh: Mesh) -> "Machine":
        """The machine that a mesh of a topology's devices is."""
        places = np.array([device.coords for device in mesh.devices.flat])
        return cls(chip, Torus(places, closed(topology), chip.link))


def timeline(text: str, machine: Machine) -> Timeline:
    """The time model above, of an optimized module that says in which order it runs."""
    computations, entry = parse(text)
    return _Schedule(computations, machine).run(entry)


@dataclass
class _Schedule:
    """The clock going through computations."""

    computations: Computations
    machine: Machine
    done: dict[str, Timeline] = field(default_factory=dict)

    def run(self, name: str) -> Timeline:
        if name in self.done:
            return self.done[name]
        lines = {line.name: line for line in self.computations[name]}
        total, flying = Timeline(), {}
        free = dict.fromkeys(("links", "memory", "host", "network"), 0.0)  # when each takes more
        for line in self.computations[name]:
            if inner := self._inner(line):
                total.add(self.run(inner[0]), inner[1])
            elif begun := self._begun(line):
                channel, seconds, sent = begun
                free[channel] = max(total.seconds, free[channel]) + seconds
                flying[line.name] = Transfer(free[channel], total.computing, sent)
            elif self._ends(line):
                self._wait(total, flying, _origin(line, lines, flying))
            else:
                for kind, sent, text in self._collectives(line):
                    seconds = self.machine.torus.seconds(kind, *_whole(kind, sent, text))
                    total.seconds += seconds
                    total.waiting += seconds
                    total.sent += sent
                self._compute(total, line, lines)
        for name_ in list(flying):
            self._wait(total, flying, name_)
        self.done[name] = total
        return total

    def _inner(self, line: Instruction) -> tuple[str, int] | None:
        """A computation that a line runs in its place, and how often."""
        if line.opcode == "while":
            return line.called("body"), trips_of(self.computations[line.called("condition")], line)
        if line.opcode == "call":
            return line.called("to_apply"), 1
        if line.opcode == "conditional":  # the first branch stands for all
            return line.called("true_computation") or line.called("branch_computations"), 1
        return None

    def _body(self, line: Instruction) -> list[Instruction]:
        return self.computations.get(line.called("calls") or "", [])

    def _targets(self, line: Instruction) -> str:
        return " ".join(part.text for part in self._body(line) if part.opcode == "custom-call")

    def _continues(self, line: Instruction) -> bool:
        """Whether a collective that another line began goes on beside what a fusion computes."""
        return (line.called("calls") or "").startswith("async_collective_fusion")

    def _begun(self, line: Instruction) -> tuple[str, float, float | None] | None:
        """What a line starts: where it goes, its seconds, and its bytes if it is a collective."""
        chip = self.machine.chip
        if line.opcode == "recv" and "is_host_transfer=true" in line.text:  # from another slice
            return (
                "network",
                nbytes(line.shapes[0]) / self.machine.chip.network,
                nbytes(line.shapes[0]),
            )
        if line.opcode in COPIES or line.opcode == "async-start":
            inner = self._body(line)
            if any(part.opcode in COLLECTIVES for part in inner):
                ((kind, sent, text),) = self._collectives(line)
                return "links", self.machine.torus.seconds(kind, *_whole(kind, sent, text)), sent
            spaces = line.spaces + tuple(space for part in inner for space in part.spaces)
            size = min((nbytes(s) for s in line.shapes if math.prod(s[1]) > 1), default=0.0)
            if HOST in spaces:
                return "host", size / chip.host, None
            return "memory", size / chip.bandwidth, None
        kind = line.opcode.removesuffix("-start")
        started = kind != line.opcode and kind in COLLECTIVES
        if started or "AsyncCollectiveStart" in self._targets(line):
            found = self._collectives(line)
            seconds = sum(self.machine.torus.seconds(k, *_whole(k, s, t)) for k, s, t in found)
            return "links", seconds, sum(sent for _, sent, _ in found)
        return None

    def _ends(self, line: Instruction) -> bool:
        return line.opcode.endswith("-done") or "AsyncCollectiveDone" in self._targets(line)

    def _collectives(self, line: Instruction) -> list[tuple[str, float, str]]:
        """Of a line or of what it calls: kind, bytes given, text."""
        if self._continues(line):
            return []
        within = [line, *self._body(line)] if line.opcode in ("fusion", "async-start") else [line]
        found = []
        for part in within:
            kind = part.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or len(first_group(part.text)) == 1:
                continue
            arrays = part.shapes[len(part.shapes) // 2 :] if kind != part.opcode else part.shapes
            if (line.called("calls") or "").startswith("all-reduce-scatter"):
                kind, arrays = "reduce-scatter", within[-1].shapes
            found.append((kind, sum(map(nbytes, arrays)), part.text))
        return found

    def _compute(
        self, total: Timeline, line: Instruction, lines: Mapping[str, Instruction]
    ) -> None:
        chip = self.machine.chip
        if line.opcode == "custom-call":
            read = tuple(s for name in line.operands if name in lines for s in lines[name].shapes)
            attention = splash_seconds(chip, line, read)
            total.kernels += attention
            seconds = attention + quantized_seconds(chip, line, read)
        elif line.opcode in COLLECTIVES and not CYCLES.search(line.text):
            seconds = 0.0
        else:
            seconds = line_seconds(chip, line, lines, self.computations)
        total.compute(seconds)

    def _wait(self, total: Timeline, flying: dict[str, Transfer], name: str | None) -> None:
        if name is None:
            return
        transfer = flying.pop(name)
        late = max(transfer.end - total.seconds, 0.0)
        total.seconds += late
        if transfer.sent is None:
            total.copying += late
            return
        total.waiting += late
        total.sent += transfer.sent
        if total.computing > transfer.computing:
            total.overlapped += transfer.sent


def _whole(kind: str, sent: float, text: str) -> tuple[float, str]:
    """Bytes of the whole array, as `Torus.seconds` takes them."""
    return (sent * max(len(first_group(text)), 1) if kind == "reduce-scatter" else sent), text


def _origin(
    line: Instruction, lines: Mapping[str, Instruction], flying: Mapping[str, Transfer]
) -> str | None:
    """What a line waits for: what it reads, through those by which it went on; else the oldest."""
    at: Instruction | None = line
    while at is not None and at.name not in flying:
        at = lines.get(at.operands[0]) if at.operands else None
    return at.name if at else None
