"""A forecast as text."""

from collections.abc import Mapping
from typing import Any

from ftjax.forecast.chips import GIB
from ftjax.forecast.gpus import UNKNOWN

NAMES = {"compiler": "the compiler's own estimate"}  # of what times are told by


def lines(figures: Mapping[str, Any], price: float | None = None) -> list[str]:
    """The forecast as text.

    Args:
        figures: what `forecast` returns.
        price: of a chip-hour.
    """
    mesh = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items() if size > 1)
    rows, length = figures["batch"]
    gpus = figures["platform"] == "gpu"
    parts = "hosts" if gpus else "slices"
    where = figures["topology"] + (
        f" x {figures['slices']} {parts}" if figures["slices"] > 1 else ""
    )
    text = [
        f"{figures['model']}, {figures['method']}: {figures['trainable']:,} of "
        f"{figures['parameters']:,} parameters train",
        f"{where}: {figures['chips']} chips, {mesh or 'one device'}; batch {rows} x {length}",
    ]
    if "memory" not in figures:
        return [*text, f"does not fit: {figures['reason']}"]
    memory, flops = figures["memory"], figures["flops"]
    capacity, across = figures["chip_memory"] / GIB, figures["collectives"]["between_slices"]
    return [
        *text,
        f"{'fits' if figures['fits'] else 'does not fit'}: {memory['sum'] / GIB:.2f} of "
        f"{capacity:.0f} GiB a chip (arguments {memory['arguments'] / GIB:.2f}, outputs "
        f"{memory['outputs'] / GIB:.2f}, temporaries {memory['temporaries'] / GIB:.2f}; "
        f"peak {memory['peak'] / GIB:.2f}; at start {memory['start'] / GIB:.2f}, at resume "
        f"{memory['resume'] / GIB:.2f})",
        *([UNKNOWN] if gpus else []),
        f"work: {flops['dense'] / 1e12:.1f} TFLOP of products, {flops['kernels'] / 1e12:.1f} of "
        f"attention kernels{_least(figures)}",
        "sent: "
        + ", ".join(
            f"{kind} {count / 1e9:.3f} GB in {figures['collectives']['runs'][kind]:,}"
            for kind, count in sorted(figures["collectives"]["bytes"].items())
        )
        + (f"; between {parts} {across / 1e9:.3f} GB" if across else ""),
        *_times(figures, price),
        *([f"waits are long: {figures['waits']}"] if "waits" in figures else []),
        *([f"memory is left: {figures['room']}"] if "room" in figures else []),
        f"compiled in {figures['compile_seconds']:.1f} s",
    ]


def _least(figures: Mapping[str, Any]) -> str:
    if "least_flops" not in figures:
        return ""
    dense, attention = (figures["least_flops"][kind] / 1e12 for kind in ("dense", "attention"))
    return f"; the method needs {dense:.1f} and {attention:.1f}"


def _times(figures: Mapping[str, Any], price: float | None) -> list[str]:
    """What is said of time and cost; nothing after a quick compilation."""
    if "seconds" not in figures:
        return ["quick: memory alone, for the times of such a program are not those of a run"]
    times, hours = figures["seconds"], figures["chip_hours_per_billion_tokens"]
    times = {NAMES.get(kind, kind): t for kind, t in times.items()}
    bound = max(times, key=times.get)
    cost = "" if price is None else f", {hours * price:,.2f} at {price:g} a chip-hour"
    said = figures["predicted"]
    return [
        f"predicted: {1e3 * said['seconds']:,.1f} ms a step, of which {1e3 * said['waiting']:,.1f} "
        f"ms waits for collectives; {said['overlapped']:.0%} of their bytes are sent beside "
        "computation",
        "least time: " + ", ".join(f"{kind} {1e3 * t:,.1f} ms" for kind, t in times.items() if t),
        f"bound by {bound}: MFU at most {figures['mfu_bound']:.0%}",
        f"at most {figures['tokens_per_second']:,.0f} tokens/s, "
        f"{figures['tokens_per_second_per_chip']:,.0f} a chip; a billion tokens take at least "
        f"{hours:,.1f} chip-hours{cost} (tokens are all positions of a batch)",
    ]
