"""A run's configuration for those who read its work folder, on the devices that are there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ftjax.changes import PLACE
from ftjax.config import override
from ftjax.errors import UserError
from ftjax.models.attention import runs_on
from ftjax.parallel.mesh import AXES, batch_ways, configured_mesh, mesh_like
from ftjax.workdir.folder import read_workdir


def read_config(
    workdir: Path, changes: Mapping[str, Any] | None = None, may: Sequence[str] = PLACE
) -> ConfigDict:
    """The configuration of a work folder, under changes, for the devices that are here.

    Args:
        workdir: the work folder.
        changes: dotted key → value.
        may: what keys may begin with.

    Raises:
        UserError: it is not a work folder, or another key is given.
    """
    config = read_workdir(workdir)
    trained, changes = {axis: config.mesh[axis] for axis in AXES}, dict(changes or {})
    for key, value in changes.items():
        if not key.startswith(tuple(may)):
            raise UserError(f"--config.{key} cannot be changed here, only {', '.join(may)}")
        override(config, key, value)
    sizes = {axis: config.mesh[axis] for axis in AXES if f"mesh.{axis}" in changes}
    config.mesh.update(mesh_like(trained, sizes, jax.devices()))
    if "model.attention" not in changes and not runs_on(
        config.model.attention, jax.default_backend()
    ):
        config.model.attention = "auto"  # it trained on another platform
    # Rows beyond those there are have no weight, and none is trained on.
    ways = batch_ways(configured_mesh(config.mesh))
    rows = -(-config.train.eval_batch_size // ways) * ways
    config.train.update({"batch_size": rows, "eval_batch_size": rows, "accumulation": 1})
    return config
