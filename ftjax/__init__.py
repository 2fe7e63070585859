"""ftjax: fine-tuning language models in JAX.

A fine-tuning method is a selection of a trainable subtree of the parameters, plus the parameters
it adds. What is named here is the interface; importing the package imports nothing heavy.

    import ftjax

    config = ftjax.config("sst2", method="lora", **{"data.path": "reviews"})
    result = ftjax.train(config, "runs/lora")
    model = ftjax.load("runs/lora")
    model.predict([{"text": "a lovely film"}])
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ftjax.comparison.study import Study, compare
    from ftjax.config.describe import explain
    from ftjax.errors import UserError
    from ftjax.evaluation.evaluate import evaluate
    from ftjax.evaluation.predict import Predictions, predict
    from ftjax.forecast.forecast import forecast as compile
    from ftjax.model import Model, generate, load
    from ftjax.runs.export import export
    from ftjax.runs.train import train
    from ftjax.workdir.result import Result

_PLACES = {  # name → (module, its name there)
    "Model": ("model", "Model"),
    "Predictions": ("evaluation.predict", "Predictions"),
    "Result": ("workdir.result", "Result"),
    "Study": ("comparison.study", "Study"),
    "UserError": ("errors", "UserError"),
    "compare": ("comparison.study", "compare"),
    "compile": ("forecast.forecast", "forecast"),
    "evaluate": ("evaluation.evaluate", "evaluate"),
    "explain": ("config.describe", "explain"),
    "export": ("runs.export", "export"),
    "generate": ("model", "generate"),
    "load": ("model", "load"),
    "predict": ("evaluation.predict", "predict"),
    "train": ("runs.train", "train"),
}
__all__ = [
    "Model",
    "Predictions",
    "Result",
    "Study",
    "UserError",
    "__version__",
    "compare",
    "compile",
    "evaluate",
    "explain",
    "export",
    "generate",
    "load",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "config":
        return importlib.import_module("ftjax.config")
    if name not in _PLACES:
        raise AttributeError(f"module 'ftjax' has no attribute {name!r}")
    module, inside = _PLACES[name]
    return getattr(importlib.import_module(f"ftjax.{module}"), inside)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "config"])
