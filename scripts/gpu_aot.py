"""Writes experiments/GPU_AOT.md: what methods take on GPUs, with no GPU there.

    pip install '.[gpu-aot,tpu]'
    python scripts/gpu_aot.py --workdir runs/gpu_aot

Each case is one `ftjax compile`, whose forecast is kept in the work folder; a case that is there
is not compiled again.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "experiments" / "GPU_AOT.md"
GIB = 2**30
ALL_LINEAR = ("method.rank=16", "method.alpha=16.0", "method.targets=all-linear", "model.parts=1")
METHODS = {  # name in the table → method, overrides
    "full": ("full", ()),
    "full, bfloat16 weights": ("full", ("model.trainable_dtype=bfloat16",)),
    "lora q, v": ("lora", ("method.rank=16", "method.alpha=16.0")),
    "lora all-linear": ("lora", ALL_LINEAR),
    "qlora all-linear": ("qlora", ("method.over.rank=16", "method.over.alpha=16.0")),
    "lora all-linear, rank 8": (
        "lora",
        ("method.rank=8", "method.alpha=16.0", "method.targets=all-linear", "model.parts=1"),
    ),
    "qlora all-linear, rank 8": ("qlora", ("method.over.rank=8", "method.over.alpha=16.0")),
    "qlora all-linear, rank 32": ("qlora", ("method.over.rank=32", "method.over.alpha=32.0")),
}
XLA, DOTS = ("model.attention=xla",), ("model.remat=dots",)


@dataclass(frozen=True)
class Case:
    """One row of a table.

    Attributes:
        method: a key of `METHODS`.
        topology: with a count of hosts after " x ", if more than one.
        batch, length: of a step, over all chips.
        overrides: besides the method's.
        peer: what another library publishes for the same.
    """

    model: str
    method: str
    topology: str
    batch: int
    length: int
    overrides: tuple[str, ...] = ()
    peer: str = ""

    @property
    def slug(self) -> str:
        words = (self.model, self.method, self.topology, f"{self.batch}x{self.length}")
        return re.sub(r"[ :,=.]+", "_", " ".join((*words, *self.overrides)))


def _eight(method: str, topology: str, *overrides: str) -> Case:
    return Case("llama-3.1-8b", method, topology, 64, 4096, overrides)


def _seventy(method: str, topology: str, *overrides: str) -> Case:
    return Case("llama-3.1-70b", method, topology, 16, 4096, overrides)


# README.md of pytorch/torchtune at 0031bfb (October 2024): batch 2, rows packed to 2,048 tokens,
# compiled, recomputed layers.
TORCHTUNE = "torchtune {} GiB on {}"
EIGHT, LORA = "llama-3.1-8b", "lora all-linear, rank 8"
# unsloth.ai/docs/basics/unsloth-benchmarks and unsloth.ai/blog/llama3-3 (December 2024): one row,
# rank 32, all linear; the longest row that fits so much memory.
UNSLOTH = "Unsloth {} GB, transformers + FA2 {}"
SECTIONS: dict[str, tuple[Case, ...]] = {
    "llama-3.1-8b, 64 rows of 4,096 tokens over eight": (
        *(
            _eight(method, topology, *overrides)
            for method in ("full", "full, bfloat16 weights", "lora q, v", "lora all-linear")
            for topology, overrides in (
                ("h100:8", ()), ("h100:8", XLA), ("h100:8", DOTS),
                ("h200:8", ()), ("a100:8", ()), ("v5p:2x2x2", ()),
            )
            if not overrides or method in ("full", "lora q, v")
        ),
        _eight("qlora all-linear", "h100:8"),
        _eight("qlora all-linear", "h200:8"),
        _eight("full", "h100:8 x 2"),
        _eight("full", "h100:8 x 2", "mesh.data=2"),
    ),
    "llama-3.1-8b on packed rows: segments in Triton's kernels, or a mask in cuDNN's": tuple(
        Case("llama-3.1-8b", "lora q, v", "h100:8", rows, length, ("data.batching=pack", attention))
        for rows, length in ((64, 4096), (8, 32768))
        for attention in ("model.attention=triton", "model.attention=cudnn")
    ),
    "llama-3.1-8b with projections in 8-bit floats": (
        _eight("full", "h100:8", "model.products=float8"),
        _eight("lora q, v", "h100:8", "model.products=float8"),
    ),
    "llama-3.1-70b, 16 rows of 4,096 tokens over eight": (
        _seventy("qlora all-linear", "h200:8"),
        _seventy("qlora all-linear", "h100:8"),
        _seventy("lora all-linear", "h200:8"),
        _seventy("lora all-linear", "h100:8"),
        _seventy("full", "h200:8"),
    ),
    "Beside torchtune: 2 rows of 2,048 tokens a GPU, packed": tuple(
        Case(model, method, topology, 2 * gpus, 2048, ("data.batching=pack",), peer)
        for model, method, topology, gpus, peer in (
            (EIGHT, "full, bfloat16 weights", "a100:1", 1,
             TORCHTUNE.format(37.4, "an A6000 (AdamW in 8 bits, paged)")),
            (EIGHT, LORA, "a100:1", 1, TORCHTUNE.format(30.3, "an A6000")),
            (EIGHT, LORA, "a100:1", 1, TORCHTUNE.format(16.2, "a 4090")),
            (EIGHT, f"q{LORA}", "a100:1", 1, TORCHTUNE.format(7.4, "a 4090")),
            ("llama-3.1-70b", LORA, "a100:8", 8, TORCHTUNE.format(27.6, "eight A100")),
        )
    ),
    "Beside Unsloth: one long row on one GPU": (
        Case("llama-3.1-8b", "qlora all-linear, rank 32", "h100:1", 1, 5760, (),
             UNSLOTH.format("12 (to 21,848)", "24 (to 5,789)")),
        Case("llama-3.1-8b", "qlora all-linear, rank 32", "h100:1", 1, 28416, (),
             UNSLOTH.format("16 (to 40,724)", "80 (to 28,454)")),
        Case("llama-3.1-8b", "qlora all-linear, rank 32", "h100:1", 1, 78464, (),
             UNSLOTH.format("24 (to 78,475)", "–")),
        Case("llama-3.1-70b", "qlora all-linear, rank 32", "h100:1", 1, 6912, (),
             UNSLOTH.format("48 (to 12,106)", "80 (to 6,916)")),
    ),
}  # fmt: skip
HEADER = ("", "on", "rows", "GiB", "peak", "TFLOP", "needed", "gathered GB", "summed GB")
HEADER = (*HEADER, "bound by", "MFU at most", "compiled in")


def compiled(workdir: Path, case: Case) -> dict[str, Any]:
    """The forecast of a case, from the work folder or made now."""
    file = workdir / f"{case.slug}.json"
    if not file.exists():
        method, overrides = METHODS[case.method]
        topology, _, hosts = case.topology.partition(" x ")
        sizes = f"model.path={case.model}", f"train.batch_size={case.batch}"
        settings = (*sizes, f"data.max_length={case.length}", *overrides, *case.overrides)
        page = f"{ROOT / 'configs' / 'ahead.py'}:{method}/causal_lm"
        command = [sys.executable, "-m", "ftjax", "compile", "--config", page]
        command += ["--topology", topology, "--hosts", hosts or "1", "--output", str(file)]
        command += [f"--config.{setting}" for setting in settings]
        print(case.slug, flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            reason = (errors or done.stderr.strip().splitlines() or ["no reason given"])[-1]
            file.write_text(json.dumps({"refused": reason.removeprefix("error: ")}))
    return json.loads(file.read_text())


def row(case: Case, forecast: dict[str, Any], beside: bool) -> str:
    """A row of a table; `beside`: with what a peer publishes."""
    shown = (o.split(".")[1] for o in case.overrides if o.startswith(SHOWN))
    name = ", ".join((case.method, *shown))
    first = name if case.model in ("", "llama-3.1-8b") else f"{case.model}: {name}"
    cells = [first, case.topology, f"{case.batch} x {case.length:,}"]
    if "memory" not in forecast:
        cells += [forecast.get("refused", forecast.get("reason")), *([""] * (len(HEADER) - 4))]
    else:
        flops, least, times = forecast["flops"], forecast["least_flops"], forecast["seconds"]
        sent, memory = forecast["collectives"]["bytes"], forecast["memory"]
        summed = sent.get("all-reduce", 0) + sent.get("reduce-scatter", 0)
        cells += [
            f"{memory['sum'] / GIB:.2f}" + ("" if forecast["fits"] else " (does not fit)"),
            f"{memory['peak'] / GIB:.2f}",
            f"{flops['dense'] / 1e12:.0f} + {flops['kernels'] / 1e12:.0f}",
            f"{least['dense'] / 1e12:.0f} + {least['attention'] / 1e12:.0f}",
            f"{sent.get('all-gather', 0) / 1e9:.2f}",
            f"{summed / 1e9:.2f}",
            max(times, key=times.get),
            f"{forecast['mfu_bound']:.0%}",
            f"{forecast['compile_seconds']:.0f} s",
        ]
    return f"| {' | '.join([*cells, case.peer] if beside else cells)} |"


SHOWN = ("model.attention", "model.remat", "model.products", "mesh.data")


def section(workdir: Path, title: str, cases: tuple[Case, ...]) -> Iterator[str]:
    beside = any(case.peer for case in cases)
    header = (*HEADER, "published") if beside else HEADER
    yield f"## {title}"
    yield ""
    yield f"| {' | '.join(header)} |"
    yield "|---|---|" + "---:|" * 7 + "---|---:|---:|" + ("---|" if beside else "")
    for case in cases:
        yield row(case, compiled(workdir, case), beside)
    yield ""


def cross_entropy(workdir: Path) -> Iterator[str]:
    """The language head in chunks beside fused kernels, by scripts/fused_cross_entropy.py."""
    file = workdir / "cross_entropy.json"
    if not file.exists():
        script = ROOT / "scripts" / "fused_cross_entropy.py"
        subprocess.run([sys.executable, str(script), "--output", str(file)], check=True)
    yield "## Cross-entropy of 8 rows of 4,096 tokens and 128,256 words on one H100"
    yield ""
    yield "Gradients of hidden states x of 4,096 features, or of the projection W too. In chunks,"
    yield "1,024 tokens at a time as on GPUs or 256 as elsewhere (on one device), no logits are"
    yield "computed twice; the kernels of Wijmans et al. (2024, arXiv:2411.09009) keep none, and"
    yield "compute them anew for each gradient. What those read of W again is not in GB moved."
    yield ""
    yield "| | GiB of temporaries | TFLOP | GB moved | least ms |"
    yield "|---|---:|---:|---:|---:|"
    for name, figures in json.loads(file.read_text()).items():
        cells = [
            name,
            f"{figures['temporaries'] / GIB:.2f}",
            f"{figures['flops'] / 1e12:.0f}",
            f"{figures['moved'] / 1e9:,.0f}",
            f"{1e3 * figures['least_seconds']:.0f}",
        ]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    tables = [
        line for title, cases in SECTIONS.items() for line in section(options.workdir, title, cases)
    ]
    versions = compiled(options.workdir, _eight("full", "h100:8"))["versions"]
    lines = [
        "# On GPUs, compiled ahead of time",
        "",
        "Written by `python scripts/gpu_aot.py --workdir DIR`: the step that `ftjax train` runs,",
        "as `ftjax compile` finds it (bfloat16, layers scanned, all computed again in the backward",
        "pass unless it says otherwise, all parameters over fsdp), by",
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.",
        "",
        "**No step was run, on no GPU.** GiB are arguments, outputs less aliases, and temporaries",
        "of one device; peak is the compiler's own figure. Both are estimates: no kernel was tuned",
        "on a GPU, and cuDNN's workspace, NCCL's buffers and CUDA's context are not in them.",
        "TFLOP are a device's in a step, of products and of attention kernels, counted in the",
        "compiled program (XLA has no cost analysis for GPUs that are not there); what the method",
        "needs computes nothing twice, and no gradient of frozen weights. Collectives are counted",
        "by what they give a device in a step. Bounds are by published rates, each kind of work by",
        "itself. An H100 has 79.1 GiB, an H200 141.0, an A100 79.3, a v5p 95. Attention is",
        "cuDNN's, of packed rows Triton's, a TPU's the splash kernel. Work in 8-bit floats counts",
        "as such in bfloat16 does, which an H100 takes twice as long for.",
        "",
        "Published figures are what a process held on another card, of other software, with the",
        "optimizer named: torchtune's of the README of pytorch/torchtune at commit 0031bfb",
        "(October 2024), where LoRA is of rank 8 and parameters are bfloat16; Unsloth's of",
        "unsloth.ai/docs/basics/unsloth-benchmarks and unsloth.ai/blog/llama3-3 (December 2024),",
        "where the memory is a card's, the length in brackets is the longest row that fits it, and",
        "activations are kept on the host.",
        "",
        *tables,
    ]
    OUTPUT.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
