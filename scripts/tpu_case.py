"""A step compiled ahead of time for TPUs, whose forecast is kept in a work folder."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LLAMA2 = {
    "model_type": "llama",
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
# Hidden size, that of feed-forward blocks, layers, heads, those of keys and values. MaxText's own
# models are those of its `global_parameter_scale`.
SIZES = {
    "llama-2-7b": (4096, 11008, 32, 32, 32),
    "llama-2-70b": (8192, 28672, 80, 64, 8),
    "mistral-7b": (4096, 14336, 32, 32, 8),
    "maxtext-16b": (4096, 28672, 32, 64, 64),
    "maxtext-32b": (8192, 28672, 32, 64, 64),
    "maxtext-64b": (8192, 28672, 64, 64, 64),
}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NAMES = (*NAMES, "num_key_value_heads")


@dataclass(frozen=True)
class Case:
    """A step.

    Attributes:
        model: a preset of ftjax, or one of `SIZES`.
        batch, length: over all chips.
        method: an argument of configs/ahead.py.
        overrides: of the configuration.
    """

    model: str
    topology: str
    batch: int
    length: int
    method: str
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.length}"
        return " ".join((self.model, self.topology, shape, self.method, *sorted(self.overrides)))

    def file(self, workdir: Path) -> Path:
        """Where its forecast is."""
        digest = hashlib.sha256(str(self).encode()).hexdigest()[:10]
        topology = self.topology.replace(":", "_")
        return workdir / f"{self.model}_{topology}_{self.method}_{digest}.json"

    def arguments(self, workdir: Path) -> list[str]:
        """What `ftjax` is told to compile it."""
        path = workdir / self.model if self.model in SIZES else self.model
        settings = (f"model.path={path}", f"train.batch_size={self.batch}")
        settings += (f"data.max_length={self.length}", *self.overrides)
        return [
            *("compile", "--topology", self.topology),
            *("--config", f"{ROOT / 'configs' / 'ahead.py'}:{self.method}"),
            *(f"--config.{setting}" for setting in settings),
            *("--output", str(self.file(workdir))),
        ]

    def forecast(self, workdir: Path, make: bool = True) -> dict[str, Any]:
        """From the work folder, or made now; else, and not to be made, nothing but why."""
        file = self.file(workdir)
        if not file.exists() and not make:
            return {"reason": "not compiled"}
        if not file.exists():
            print(self, flush=True)
            write_model(self.model, workdir)
            subprocess.run([sys.executable, "-m", "ftjax", *self.arguments(workdir)], check=False)
        return json.loads(file.read_text())


def write_model(name: str, workdir: Path) -> None:
    """The config.json of a model that is no preset."""
    if name in SIZES:
        (workdir / name).mkdir(parents=True, exist_ok=True)
        config = {**LLAMA2, **dict(zip(NAMES, SIZES[name], strict=True))}
        (workdir / name / "config.json").write_text(json.dumps(config))
