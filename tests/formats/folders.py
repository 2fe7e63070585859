"""Models of folders, with moved parameters, and what is in folders."""

from pathlib import Path

import jax

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.formats.folder import read_config
from tests.conftest import perturbed


def start(folder, mesh, head, method="full", **settings):
    """A folder's model and moved parameters."""
    wanted = {"head": head, "labels": 2} if head == "classification" else {"head": head}
    model = build_tuned(
        read_config(folder),
        methods.create({"name": method}),
        {"dtype": "float32", **settings},
        wanted,
    )
    params, _ = pretrained.load(folder, model, mesh, jax.random.key(0))
    return model, perturbed(params, model)


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}
