"""Writes the last part of experiments/TPU_AOT.md: predicted step times, beside MaxText's.

    python scripts/tpu_times.py --workdir runs/tpu_times

Each case is one `ftjax compile`, whose forecast is kept in the work folder; a case that is there
is not compiled again.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tpu_beside import BESIDE
from tpu_case import ROOT
from tpu_published import FLAGS, PUBLISHED

OUTPUT = ROOT / "experiments" / "TPU_AOT.md"
HEADING = "# Predicted step times"
GIB = 2**30


def said_of(overrides: Sequence[str]) -> str:
    """Settings as a table has them: options of the compiler by their name."""
    words = ", ".join(FLAGS.get(setting, setting) for setting in overrides)
    return words.replace("model.", "").replace("|", "\\|")


def beside_rows(workdir: Path, make: bool) -> Iterator[str]:
    """Ours and the peer's, a policy a row."""
    columns = ("model, topology", "method", "program", "GiB a chip", "ms a step", "of its best")
    yield f"| {' | '.join((*columns, 'gathered GB', 'overlapped'))} |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    for each in BESIDE:
        case, found = each.case, each.case.forecast(workdir, make)
        where = f"{case.model}, {case.topology}, {case.batch} × {case.length}"
        name = f"{each.name}{'*' * each.before}"
        best = min((ms for _, ms, _, _ in each.peers.values()), default=0.0)
        ours = f"| {where} | {name} | ftjax: {said_of(case.overrides)} | "
        if "predicted" not in found:
            yield f"{ours}– | – | – | – | {found.get('reason', 'does not fit')} |"
        else:
            said, memory = found["predicted"], found["memory"]
            sent = found["collectives"]["bytes"].get("all-gather", 0) / 1e9
            ms = 1e3 * said["seconds"]
            share = f"{ms / best:.2f}" if best else "–"
            yield (
                f"{ours}{memory['sum'] / GIB:.2f} | {ms:,.0f} | {share} | {sent:.2f} | "
                f"{said['overlapped']:.0%} |"
            )
        for policy, (size, ms, gathered, share) in each.peers.items():
            yield (
                f"| | {name} | MaxText: {policy} | {size:.2f} | {ms:,.0f} | {ms / best:.2f} | "
                f"{gathered:.2f} | {share:.0%} |"
            )


def published_rows(workdir: Path, make: bool) -> Iterator[str]:
    """What is predicted of our step beside what is published of MaxText's, and the error."""
    columns = ("model, topology", "batch", "ftjax", "predicted s", "published s", "error")
    yield f"| {' | '.join((*columns, 'its remat', 'source'))} |"
    yield "|---|---:|---|---:|---:|---:|---|---|"
    for row in PUBLISHED:
        case, found = row.case, row.case.forecast(workdir, make)
        if "predicted" not in found:
            said = f"| – | {row.seconds:.2f} | {found.get('reason', 'does not fit')}"
        else:
            took = found["predicted"]["seconds"]
            said = f"| {took:.2f} | {row.seconds:.2f} | {took / row.seconds - 1:+.1%}"
        yield (
            f"| {case.model}, {case.topology} | {case.batch} × {case.length} | "
            f"{said_of(case.overrides)} {said} | {row.remat} | {row.source} |"
        )


def text(workdir: Path, make: bool) -> str:
    lines = [
        HEADING,
        "",
        "Written by `python scripts/tpu_times.py --workdir DIR`, by the time model of",
        "`ftjax/forecast/timeline.py`: one clock through the compiler's schedule, by its estimated",
        "cycles, rings of links, and what runs between a collective's start and its end. Bytes are",
        "overlapped where anything is computed in between. No step was run.",
        "",
        "## Beside MaxText at its best",
        "",
        "The same model, batch and topology; MaxText 0.2.5 (JAX 0.12.0.1, libtpu 0.0.52, bfloat16",
        "weights, rank 16) with each remat policy that was compiled, through the same time model.",
        "Its attention has blocks of 1,024, as ours, where sparse cores are named, else of 512 as",
        "it comes. Rows with * are read, ours and its alike, by the time model before arrays of 16",
        "bits were taken for the bytes they are, and heads laid out before they are float32.",
        "",
        "Options of the compiler are the same on both sides: 96 MiB of the chip's own memory for",
        "fusions (64 on v5p), as in MaxText's recipes, and collectives by sparse cores, which its",
        "recipes have for TPU7x, and of v6e and v5p in one dimension of the torus: this compiler",
        "has them in all there, too. Without them nothing is sent beside computation on v6e, on",
        "either side. They were not tried before: 0.68 to 0.98, which this table had for v6e, and",
        "0.84 to 0.94 for v5p, were beside MaxText at less than its best. With them both are bound",
        "by what they compute: products run at 98% of v5p's peak by the compiler's estimates.",
        "0.85 would take products of wide features kept in nearly all layers of 70B, for which",
        "there is no memory. In 40 of the 80, LoRA of queries and values is predicted at 7,202 ms",
        "(0.94), by a program that compiles, whose peak the compiler gives as 82.6 GiB, but whose",
        "arguments and temporaries are 106.9 together: it does not count as one that fits. LoRA of",
        "8B on v6e sends no parameters, since each chip has a copy.",
        "",
        "On v5e there are no sparse cores, and 96 MiB were tried on neither side. Where all is",
        "tuned, its compiler scatters gradients beside no computation: of the step 0.41 s of our",
        "1.95 are waits, and 0.38 of MaxText's, for all-reduces. Where our parameters are copied",
        "to each chip, MaxText's step with copies was compiled, too: of qwen3 it is its best (over",
        "fsdp 466 ms, by the time model before).",
        "",
        *beside_rows(workdir, make),
        "",
        "## Beside published step times",
        "",
        "Full fine-tuning, float32 weights unless a row says otherwise, bfloat16 products, at the",
        "published batch, by a plain step of ours with the options of the compiler that the recipe",
        "names, and the policy of ours that is next to its own. Published are steps of MaxText:",
        "of v6e as its recipes log them; of v5e and v5p by tables of TFLOP/s a chip, of shares of",
        "peak, or of tokens a second, from which the step follows. Where it is not compiled, the",
        "time was not there.",
        "",
        *published_rows(workdir, make),
        "",
        "What is known of the errors: products are estimated above what is reached (8,192 cubed",
        "on v6e 1.47 ms for 1.33 measured); our head is gathered and its gradient scattered for",
        "each chunk of tokens (0.41 s of the 16B step); the v6e steps compute projections of",
        "attention again, which the recipe keeps in the machine's memory (4% of their FLOPs).",
        "Before arrays of 16 bits were taken for the bytes they are, the compiled rows on v5e,",
        "v5p and v6e erred by +18%, +10% and +9%.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--kept", action="store_true", help="compile nothing")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    before = OUTPUT.read_text(encoding="utf-8").partition(HEADING)[0].rstrip()
    OUTPUT.write_text(f"{before}\n\n{text(options.workdir, not options.kept)}", encoding="utf-8")


if __name__ == "__main__":
    main()
