"""Adapter folders of PEFT and of AdapterHub, whichever a folder is."""

from pathlib import Path
from typing import Any

import numpy as np

from ftjax import methods
from ftjax.formats.adapterhub import folder as adapterhub
from ftjax.formats.folder import read_json
from ftjax.formats.guard import named
from ftjax.formats.peft import folder as peft
from ftjax.formats.sentence_transformers.writing import read_beside
from ftjax.parallel.mesh import placed_like
from ftjax.paths import Flat
from ftjax.tuned import Tuned


def _of_peft(folder: Path) -> bool:
    if adapterhub.is_fusion(folder):
        return False
    return "peft_type" in read_json(folder / "adapter_config.json")


def read_method(folder: Path) -> dict[str, Any]:
    """`method.*` of an adapter folder: {"name": ..., hyperparameter: value, ...}.

    Raises:
        UserError: the folder is none, or of a method that is not implemented.
    """
    settings = peft.read(folder) if _of_peft(folder) else adapterhub.read_method(folder)
    with named(folder / "adapter_config.json"):
        methods.create(settings)
    return settings


def load_into(tuned: Tuned, params: Flat, folder: Path) -> tuple[Flat, list[str]]:
    """Parameters with an adapter's, and the head's paths that it lacks: see `peft.load_into`.

    A head may lie beside the adapter, in modules of sentence-transformers.
    """
    if _of_peft(folder):
        params, absent = peft.load_into(tuned, params, folder)
    else:
        adapter = adapterhub.read_adapter(folder, tuned)
        absent = [p for p in tuned.shapes if tuned.names.in_head(p) and p not in adapter]
        params = params | {
            path: placed_like(array, params[path]) for path, array in adapter.items()
        }
    for path, stored in read_beside(folder, tuned, absent).items():
        whole = stored.read(tuple(slice(None) for _ in stored.shape), np.float32)
        params = {**params, path: placed_like(whole, params[path])}
        absent = [other for other in absent if other != path]
    return params, absent
