"""Writes experiments/METHOD_COST.md: what each method's train step costs, beside full fine-tuning.

Everything is read off compiled programs (AdamW, gradient norm logged, unrolled layers, no weights
loaded, nothing run), so that the table is the same on every machine with this compiler.

    python scripts/method_cost.py [--methods full,lora] [--models bert-base]
"""

import argparse
from pathlib import Path
from typing import Any

from ftjax import methods, tuned
from ftjax.errors import UserError
from ftjax.training.cost import abstract_params, compiled_step, nbytes

OUTPUT = Path(__file__).parents[1] / "experiments" / "METHOD_COST.md"
ROWS, LENGTH = 8, 128
MODELS: dict[str, dict[str, Any]] = {
    "bert-base": {"model_type": "bert"},
    "llama-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}
HEAD = {"head": "classification", "labels": 2, "pooling": "cls"}
# Small programs are what is measured, not their speed.
QUICK = {"xla_backend_optimization_level": 0}
COLUMNS = ("method", "trainable", "optimizer", "FLOPs", "temporaries", "base", "on disk")


def cost(name: str, config: dict[str, Any]) -> dict[str, float]:
    """Figures of one method's step."""
    model = tuned.build(config, methods.create({"name": name}), {"segments": "unrolled"}, HEAD)
    compiled, state = compiled_step(model, ROWS, LENGTH, options=QUICK)
    params = abstract_params(model)
    trainable, frozen = model.partition.split(params)
    return {
        "trainable": model.partition.counts(model.shapes)[0],
        "optimizer": nbytes(state.opt_state),
        "FLOPs": compiled.cost_analysis()["flops"],
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "base": nbytes({path: leaf for path, leaf in frozen.items() if path in model.base.shapes}),
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
    full = cost("full", MODELS[model])
    lines = [f"## {model}", "", f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * 6]
    refused = []
    for name in names:
        try:
            found = full if name == "full" else cost(name, MODELS[model])
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
        "`gradual_unfreezing` begins with the head. The compiler for CPUs undoes",
        "rematerialization: `qlora`'s temporaries hold kernels that others decode again in the",
        "backward pass.",
        "",
    ]
    for model in arguments.models.split(","):
        lines += table(model, arguments.methods.split(","))
        OUTPUT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
