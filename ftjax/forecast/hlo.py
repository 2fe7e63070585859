"""What a compiled program computes and sends, with loops counted as often as they run.

XLA's own analysis counts the body of a loop once.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ftjax.forecast.groups import first_group, integers, over_hosts

SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^{}]*\})?")
SUMMED = re.compile(  # of a product, and of one that cuBLAS does
    r'lhs_contracting_dims=\{([\d,]*)\}|"lhs_contracting_dimensions": ?\[([\d",]*)\]'
)
SEEN = ("causal", "both_sides")  # scopes of Triton's attention
UNKNOWN = 2**62  # cycles that the compiler estimates where it has no estimate, or more
NEAR, HOST = 1, 5  # memories: on the chip itself, of the machine that chips are in
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
BROKEN = re.compile(r"\n(?=\"|\}\})")  # within an attribute of a kernel
LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
Array = tuple[str, tuple[int, ...]]  # dtype, dimensions


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: its own.
        shapes: (dtype, dimensions) of each array it gives.
        spaces: of each array, the memory that it lies in: 0 the main memory, `NEAR`, `HOST`.
        opcode: what it does.
        operands: names of what it reads.
        text: the line from its operands on.
    """

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    spaces: tuple[int, ...]
    opcode: str
    operands: tuple[str, ...]
    text: str

    def called(self, key: str) -> str | None:
        """The computation it names, as `body=%...`."""
        match = re.search(rf"\b{key}=\{{?%?([\w.\-]+)", self.text)
        return match and match[1]


@dataclass
class Summary:
    """One device's work in one run of a program.

    Attributes:
        flops: of products of matrices and convolutions.
        sent: bytes of the results of collectives, by kind.
        counts: how often each kind runs.
        across: bytes received from other slices of TPUs, or other hosts of GPUs, over the network.
        kernels: how often each custom kernel runs: (name, shapes that it reads) → times.
        moved: bytes read from and written to the main memory.
        cycles: the compiler's own estimate of what is not a kernel.
    """

    flops: float = 0.0
    sent: Counter = field(default_factory=Counter)
    counts: Counter = field(default_factory=Counter)
    across: float = 0.0
    kernels: Counter = field(default_factory=Counter)
    moved: float = 0.0
    cycles: float = 0.0


def summarize(text: str, host: int | None = None) -> Summary:
    """Counts a program's work.

    Args:
        text: that of the optimized module.
        host: GPUs of each; None for no hosts.
    """
    computations, entry = parse(text)
    summary, later = Summary(), _later(computations)
    for body, times, fused in _runs(computations, entry, 1):
        lines = {line.name: line for line in computations[body]}
        shapes = {line.name: line.shapes for line in computations[body]}
        for line in computations[body]:
            if not fused:
                summary.moved += times * moved_bytes(line, lines, computations)
                cycles = re.search(r'"estimated_cycles":"(\d+)"', line.text)
                known = cycles and int(cycles[1]) < UNKNOWN
                summary.cycles += times * int(cycles[1]) if known else 0
            kind = line.opcode.removesuffix("-start")
            read = tuple(shape for name in line.operands for shape in shapes.get(name, ()))
            kernel = kernel_name(line, read)
            if line.opcode in ("dot", "convolution") or "__cublas$" in line.text:
                summary.flops += times * product_flops(line, shapes)
            elif kind in COLLECTIVES and len(first_group(line.text)) != 1 and body not in later:
                arrays = line.shapes
                if line.opcode != kind and kind != "all-reduce":  # gives what it reads, too
                    arrays = arrays[len(line.operands) : 2 * len(line.operands)]
                if body.startswith("all-reduce-scatter"):  # how TPUs write it: a slice of the sum
                    kind, arrays = "reduce-scatter", computations[body][-1].shapes
                size = sum(map(nbytes, arrays))
                if kind == "ragged-all-to-all":  # of its buffers one has room for what may come
                    size = min(size, sum(map(nbytes, shapes[line.operands[0]])))
                summary.sent[kind] += times * size
                summary.counts[kind] += times
                if host:
                    received = over_hosts(line.text, kind, host)
                    summary.across += times * received * sum(map(nbytes, arrays))
            elif line.opcode == "recv" and "is_host_transfer=true" in line.text:
                summary.across += times * nbytes(line.shapes[0])
            elif kernel:
                read = tuple(shape for name in line.operands for shape in shapes[name])
                summary.kernels[kernel, read] += times
    return summary


def kernel_name(line: Instruction, read: tuple) -> str:
    """What a custom kernel is called by who counts its work; empty for all else.

    Of attention what is seen is in it: of cuDNN's the mask, and the window where there is one. It
    ends in "_fused" where it gives all gradients of attention: a sum of those of queries for each
    block of keys.
    """
    target = re.search(r'custom_call_target="([^"]*)"', line.text)
    if line.opcode != "custom-call" or target is None:
        return ""
    if target[1] == "tpu_custom_call":
        name = re.sub(r"[.\d]+$", "", line.name)
        queries = {shape for _, shape in read if len(shape) > 2}
        fused = "_dkv_" in name and any(shape[1:] in queries for _, shape in line.shapes)
        return name + ("_fused" if fused else "")
    if target[1].endswith("triton"):
        scopes = re.search(r'op_name="([^"]*)/pallas_call', line.text)
        path = scopes[1].split("/") if scopes else [""]
        return " ".join([path[-1], *(name for name in path if name in SEEN)])
    if not target[1].startswith("__cudnn$fmha"):
        return ""
    settings = r'"mask_type": ?"(\w+)"', r'"sliding_window_length": ?"?([1-9]\d*)'
    found = [re.search(pattern, line.text) for pattern in settings]
    return " ".join([target[1], *(match[1] for match in found if match)])


def nbytes(shape: Array) -> float:
    """Bytes of an array."""
    dtype, dimensions = shape
    bits = re.search(r"\d+", dtype)  # the first number: f8e4m3fn has more
    size = SIZES.get(dtype) or int(bits[0] if bits else 0) / 8
    return size * math.prod(dimensions)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a module by name, and the name of the first to run."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for raw in BROKEN.sub(" ", text).splitlines():
        if head := HEAD.match(raw):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (line := LINE.match(raw)):
            name, shape, opcode, rest = line.groups()
            arrays = ARRAY.findall(shape)
            shapes = tuple((dtype, integers(sizes)) for dtype, sizes, _ in arrays)
            spaces = tuple(_space(layout) for _, _, layout in arrays)
            read = rest.split(")")[0]
            operands = re.findall(r"%([\w.\-]+)", read) or read.split(", ")
            current.append(Instruction(name, shapes, spaces, opcode, tuple(operands), rest))
    return {name: _offloaded(lines) for name, lines in computations.items()}, entry


def _offloaded(lines: list[Instruction]) -> list[Instruction]:
    """What sparse cores are given written as other asynchronous work is.

    libtpu 0.0.42 writes a call, 0.0.52 two lines: the first, which is left out, prepares buffers
    and says what is called, the second sends.
    """
    prepared = {line.name: line for line in lines if line.opcode == "custom-call-start"}
    return [_begun(line, prepared) for line in lines if line.name not in prepared]


def _begun(line: Instruction, prepared: Mapping[str, Instruction]) -> Instruction:
    if line.opcode == "call-start":
        called, operands = line.called("to_apply"), line.operands
    elif line.opcode == "custom-call-update":
        called = prepared[line.operands[0]].called("called_computations")
        operands = line.operands[1:]
    else:
        return line
    text = f"{line.text}, calls=%{called}"
    return replace(line, opcode="async-start", operands=operands, text=text)


def _space(layout: str) -> int:
    """The number of an array's memory, as "S(1)" in its layout."""
    space = re.search(r"S\((\d+)\)", layout)
    return int(space[1]) if space else 0


def _later(computations: Mapping[str, list[Instruction]]) -> set[str]:
    """Bodies of fusions in which a collective goes on that was started in another.

    TPUs' compiler cuts a collective up to run beside other work, and names it in every piece.
    """
    calls = [line for lines in computations.values() for line in lines if line.opcode == "fusion"]
    bodies = {line.called("calls"): line.name for line in calls}
    return {
        body
        for body, caller in bodies.items()
        if body.startswith("async_collective_fusion") or caller.startswith("async-collective-done")
    }


def _runs(
    computations: Mapping[str, list[Instruction]], name: str, times: int, fused: bool = False
) -> Iterator[tuple[str, int, bool]]:
    """Every computation that runs, how often, and whether as a part of a fusion."""
    yield name, times, fused
    for line in computations[name]:
        if line.opcode == "while":
            trips = trips_of(computations[line.called("condition")], line)
            yield from _runs(computations, line.called("body"), times * trips)
        elif line.opcode in ("fusion", "call", "async-start"):
            called = line.called("calls") or line.called("to_apply")
            yield from _runs(computations, called, times, line.opcode == "fusion")
        elif line.opcode == "conditional":  # the first branch stands for all
            branch = line.called("true_computation") or line.called("branch_computations")
            yield from _runs(computations, branch, times)


FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional"}


def moved_bytes(
    line: Instruction,
    lines: Mapping[str, Instruction],
    computations: Mapping[str, list[Instruction]],
    size: Callable[[Array], float] = nbytes,
) -> float:
    """Bytes that an instruction reads from and writes to the main memory.

    Of an array of which a fusion takes or writes a slice, the slice counts.

    Args:
        line: the instruction.
        lines: of its computation, by name.
        computations: of the module.
        size: bytes of an array.
    """
    if line.opcode in FREE or line.opcode.endswith("-done"):
        return 0.0
    total = sum(size(s) for s, m in zip(line.shapes, line.spaces, strict=True) if m != NEAR)
    inside = computations[line.called("calls")] if line.opcode == "fusion" else []
    numbers = {part.name: part.operands[0] for part in inside if part.opcode == "parameter"}
    users: dict[str, list[Instruction]] = {}
    for part in inside:
        for name in part.operands:
            users.setdefault(numbers.get(name, ""), []).append(part)
    for number, name in enumerate(line.operands):
        for shape, space in zip(*_arrays(lines.get(name)), strict=True):
            uses = users.get(str(number), [])
            slices = [part for part in uses if part.opcode in ("dynamic-slice", "gather")]
            if space == NEAR:
                continue
            if uses and len(slices) == len(uses):
                total += sum(size(part.shapes[0]) for part in slices)
            elif any(part.opcode == "dynamic-update-slice" for part in uses):
                total -= size(shape)  # written in place: all but the slice stays where it is
            else:
                total += size(shape)
    return max(total, 0.0)


def _arrays(line: Instruction | None) -> tuple[tuple, tuple[int, ...]]:
    return (line.shapes, line.spaces) if line else ((), ())


def trips_of(condition: list[Instruction], loop: Instruction) -> int:
    """How often a loop runs: as it says, or by what its counter is compared with."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(known[1])
    limits = [re.match(r"(\d+)\)", line.text) for line in condition if line.opcode == "constant"]
    return max((int(limit[1]) for limit in limits if limit), default=1)


def product_flops(line: Instruction, shapes: Mapping[str, tuple]) -> float:
    """2 · outputs · what is summed for each."""
    (_, out), *_ = line.shapes
    left, right = (shapes[name][0][1] for name in line.operands[:2])
    if line.opcode != "convolution":
        summed = SUMMED.search(line.text)
        axes = integers((summed[1] or summed[2]).replace('"', ""))
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in axes)
    lhs, rhs, output = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text).groups()
    flops = 2.0 * out[output.index("b")] * out[output.index("f")] * right[rhs.index("i")]
    window = re.search(r"window=\{([^}]*)\}", line.text)
    settings = dict(item.split("=") for item in window[1].split()) if window else {}
    for axis in (label for label in output if label.isdigit()):
        sizes = left[lhs.index(axis)], right[rhs.index(axis)], out[output.index(axis)]
        flops *= _taps(sizes, {key: value.split("x")[int(axis)] for key, value in settings.items()})
    return flops


def _taps(sizes: tuple[int, int, int], settings: Mapping[str, str]) -> int:
    """How many pairs of an output and a tap of the window meet an input, along one axis.

    Args:
        sizes: of the input, the window and the output.
        settings: of the axis; what is not there is 1, and padding 0.
    """
    inputs, window, outputs = sizes
    low = int(settings.get("pad", "0_0").split("_")[0])
    step, spread, apart = (
        int(settings.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate")
    )
    positions = (o * step + t * apart - low for o in range(outputs) for t in range(window))
    return sum(
        0 <= position <= (inputs - 1) * spread and position % spread == 0 for position in positions
    )
