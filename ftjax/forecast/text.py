"""A forecast as text."""

from collections.abc import Mapping
from typing import Any

from ftjax.forecast.chips import GIB

NAMES = {"compiler": "the compiler's own estimate"}  # of what times are told by


def lines(found: Mapping[str, Any], price: float | None = None) -> list[str]:
    """The forecast as text.

    Args:
        found: what `forecast` returns.
        price: of a chip-hour.
    """
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)
    rows, length = found["batch"]
    where = found["topology"] + (f" x {found['slices']} slices" if found["slices"] > 1 else "")
    text = [
        f"{found['model']}, {found['method']}: {found['trainable']:,} of "
        f"{found['parameters']:,} parameters train",
        f"{where}: {found['chips']} chips, {mesh or 'one device'}; batch {rows} x {length}",
    ]
    if "memory" not in found:
        return [*text, f"does not fit: {found['reason']}"]
    memory, flops = found["memory"], found["flops"]
    of, across = found["chip_memory"] / GIB, found["collectives"]["between_slices"]
    return [
        *text,
        f"{'fits' if found['fits'] else 'does not fit'}: {memory['sum'] / GIB:.2f} of {of:.0f} GiB "
        f"a chip (arguments {memory['arguments'] / GIB:.2f}, outputs "
        f"{memory['outputs'] / GIB:.2f}, temporaries {memory['temporaries'] / GIB:.2f}; "
        f"peak {memory['peak'] / GIB:.2f}; at start {memory['start'] / GIB:.2f}, at resume "
        f"{memory['resume'] / GIB:.2f})",
        f"work: {flops['dense'] / 1e12:.1f} TFLOP of products, {flops['kernels'] / 1e12:.1f} of "
        f"attention kernels{_least(found)}",
        "sent: "
        + ", ".join(
            f"{kind} {count / 1e9:.3f} GB in {found['collectives']['runs'][kind]:,}"
            for kind, count in sorted(found["collectives"]["bytes"].items())
        )
        + (f"; between slices {across / 1e9:.3f} GB" if across else ""),
        *_times(found, price),
        *([f"memory is left: {found['room']}"] if "room" in found else []),
        f"compiled in {found['compile_seconds']:.1f} s",
    ]


def _least(found: Mapping[str, Any]) -> str:
    if "least_flops" not in found:
        return ""
    dense, attention = (found["least_flops"][kind] / 1e12 for kind in ("dense", "attention"))
    return f"; the method needs {dense:.1f} and {attention:.1f}"


def _times(found: Mapping[str, Any], price: float | None) -> list[str]:
    """What is said of time and cost; nothing after a quick compilation."""
    if "seconds" not in found:
        return ["quick: memory alone, for the times of such a program are not those of a run"]
    times, hours = found["seconds"], found["chip_hours_per_billion_tokens"]
    times = {NAMES.get(kind, kind): t for kind, t in times.items()}
    bound = max(times, key=times.get)
    cost = "" if price is None else f", {hours * price:,.2f} at {price:g} a chip-hour"
    return [
        "least time: " + ", ".join(f"{kind} {1e3 * t:,.1f} ms" for kind, t in times.items() if t),
        f"bound by {bound}: MFU at most {found['mfu_bound']:.0%}",
        f"at most {found['tokens_per_second']:,.0f} tokens/s, "
        f"{found['tokens_per_second_per_chip']:,.0f} a chip; a billion tokens take at least "
        f"{hours:,.1f} chip-hours{cost} (tokens are all positions of a batch)",
    ]
