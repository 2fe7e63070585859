"""Writes experiments/METHOD_COST.md: what each method's train step costs, beside full fine-tuning.

Everything is read off compiled programs (AdamW, gradient norm logged, unrolled layers, no weights
loaded, nothing run), so that the table is the same on every machine with this compiler.

    python scripts/method_cost.py [--methods full,lora] [--models bert-base]
"""

import argparse
from pathlib import Path

import jax

from ftjax import methods
from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.forecast.lowering import (
    abstract_params,
    abstract_recipe,
    abstract_state,
    compiled,
    nbytes,
)
from ftjax.parallel.mesh import make_mesh

OUTPUT = Path(__file__).parents[1] / "experiments" / "METHOD_COST.md"
ROWS, LENGTH = 8, 128
MODELS = ("bert-base", "llama-3.2-1b")
# Small programs are what is measured, not their speed.
QUICK = ("xla_backend_optimization_level=0",)
COLUMNS = ("method", "trainable", "optimizer", "FLOPs", "temporaries", "base", "on disk")


def cost(name: str, model: str) -> dict[str, float]:
    """Figures of one method's step."""
    config = default_config(name)
    config.model.path, config.model.segments = model, "unrolled"
    config.train.batch_size, config.data.max_length = ROWS, LENGTH
    config.data.batching, config.model.products = "pad", "float32"  # on every machine
    recipe, mesh = abstract_recipe(config), make_mesh(devices=jax.devices()[:1])
    program, _ = compiled(recipe, mesh, QUICK)
    state, _ = abstract_state(recipe, mesh)
    tuned = recipe.tuned
    trainable, frozen = tuned.partition.split(abstract_params(tuned))
    return {
        "trainable": tuned.partition.counts(tuned.shapes)[0],
        "optimizer": nbytes(state.opt_state),
        "FLOPs": program.cost_analysis()["flops"],
        "temporaries": program.memory_analysis().temp_size_in_bytes,
        "base": nbytes({path: leaf for path, leaf in frozen.items() if path in tuned.base.shapes}),
        "on disk": nbytes(trainable),
    }


def size(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def row(name: str, found: dict[str, float], full: dict[str, float]) -> str:
    cells = [name, f"{found['trainable']:,}", size(found["optimizer"])]
    cells += [f"{found[key] / full[key]:.3f}" for key in ("FLOPs", "temporaries")]
    cells += [size(found["base"]), size(found["on disk"])]
    return f"| {' | '.join(cells)} |"


def table(model: str, names: list[str]) -> list[str]:
    """The section of one model."""
    full = cost("full", model)
    lines = [f"## {model}", "", f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * 6]
    refused = []
    for name in names:
        try:
            found = full if name == "full" else cost(name, model)
        except UserError as error:
            refused.append(f"- `{name}`: {error}")
            continue
        lines.append(row(name, found, full))
        print(lines[-1], flush=True)
    text = f"Full: {full['FLOPs'] / 1e9:,.0f} GFLOP, {size(full['temporaries'])} of temporaries."
    return [*lines, "", text, *refused, ""]


def main() -> None:
    trained = [name for name in methods.METHODS if methods.find(name).trains]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(trained))
    parser.add_argument("--models", default=",".join(MODELS))
    arguments = parser.parse_args()
    lines = [
        "# What each method costs",
        "",
        f"Written by `python scripts/method_cost.py`: the compiled train step of {ROWS} rows of",
        f"{LENGTH} tokens in float32 with two labels, each method with its defaults. FLOPs and",
        "temporaries (the compiler's, on CPU) are shares of full fine-tuning's; base is what is",
        "kept of the frozen model in memory; on disk is what a checkpoint holds besides optimizer",
        "state. Methods that change what trains are shown at their first step:",
        "`gradual_unfreezing` begins with the head. `qlora` decodes kernels in loops over tiles,",
        "whose FLOPs the compiler counts once.",
        "",
    ]
    for model in arguments.models.split(","):
        lines += table(model, arguments.methods.split(","))
        OUTPUT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
