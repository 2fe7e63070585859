"""The train step compiled ahead of time, for chips that are not there."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax import methods, tasks, tuned
from ftjax.build import build_tuned
from ftjax.formats.folder import locate
from ftjax.models import read_config
from ftjax.models.presets import PRESETS
from ftjax.parallel.mesh import logical_axes, param_shardings
from ftjax.paths import Flat
from ftjax.regularization.l2_sp import starts
from ftjax.tasks.base import Task
from ftjax.training.recipe import Recipe
from ftjax.training.step import State, compile_step, lower_step, step_options

PLACES = 8  # examples that a packed row is taken to hold


def architecture(path: str) -> Mapping[str, Any]:
    """config.json's mapping, of a preset or of a folder; weights are not needed."""
    return PRESETS[path] if path in PRESETS else read_config(locate(path))


def abstract_recipe(config: ConfigDict, platform: str = "cpu") -> Recipe:
    """What `train` would do with a configuration, without any data or weights."""
    task, method = tasks.create(config.task), methods.create(config.method)
    weights = getattr(task, "class_weights", "none")
    count = 2 if isinstance(weights, str) else len(weights)  # labels come with data: two stand in
    names = tuple(map(str, range(count)))
    hf_config = architecture(config.model.path)
    head = task.head(names, None)
    model = build_tuned(hf_config, method, config.model, head, platform)
    model.check_length(config.data.max_length)
    return Recipe(config, task, model, max(config.train.steps, 1000))


def abstract_params(
    model: tuned.Tuned, mesh: Mesh | None = None, replicate: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Every parameter as it is stored, and where on a mesh."""
    placed: Mapping[str, Any] = {}
    if mesh is not None:
        placed = param_shardings(model.shapes, model.axes, mesh, replicate)

    def stored(path: str) -> Any:
        shape, dtype = model.shapes[path].shape, model.dtype(path)
        leaf = jax.ShapeDtypeStruct(shape, dtype, sharding=placed.get(path))
        return model.method.stored(model.base, path, leaf) if path in model.base.shapes else leaf

    return {path: stored(path) for path in model.shapes}


def abstract_state(recipe: Recipe, mesh: Mesh) -> tuple[State, Flat]:
    """The state before the first step and the frozen parameters, as shapes in their places."""
    params = abstract_params(recipe.tuned, mesh, recipe.config.mesh.replicate)
    trainable, frozen = recipe.tuned.partition.split(params)
    anchors = starts(trainable, new(recipe.tuned), recipe.config.regularization)
    return recipe.state_shapes(trainable, mesh, 0), frozen | anchors


def live(*trees: Any) -> int:
    """Bytes that arrays take on one device, as their shapes and shardings say."""
    leaves = [leaf for leaf in jax.tree.leaves(trees) if leaf.sharding is not None]
    return nbytes([leaf.update(shape=leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves])


def new(model: tuned.Tuned) -> set[str]:
    """Parameters that a base model does not have, which has no head of the task."""
    head = () if model.base.of_words else model.base.head
    return {p for p in model.shapes if p not in model.base.shapes or p.split("/")[0] in head}


def abstract_batch(config: ConfigDict, task: Task) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch as the loader makes them, at the longest length."""
    rows, length = config.train.batch_size, config.data.max_length
    packed = config.data.batching == "pack"
    example = (rows, PLACES) if packed else (rows,)
    token = (rows, length) if task.group == 1 else (rows, task.group, length)
    names = ("segment_ids", "position_ids") if packed else ("attention_mask",)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        **{name: (token, "int32") for name in ("input_ids", *names)},
        "weights": (example, "float32"),
        **({"starts": (example, "int32")} if packed else {}),
        **(
            {"targets": (token, "int32"), "target_weights": (token, "float32")}
            if task.writes
            else {}
        ),
    }
    for name, array in task.arrays.items():
        shapes[name] = (*(token if array.per == "token" else example), *array.more), array.dtype
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def compiled(
    recipe: Recipe, mesh: Mesh, options: Sequence[str] = ()
) -> tuple[jax.stages.Compiled, float]:
    """The first step's program for a mesh, and the seconds that the compiler took."""
    config = recipe.config
    state, frozen = abstract_state(recipe, mesh)
    batch = abstract_batch(config, recipe.task)
    step = recipe.step(recipe.tuned.at_step(0))
    with logical_axes(mesh):
        lowered = lower_step(
            step, state, frozen, batch, mesh, (*step_options(config, mesh), *options)
        )
        start = time.perf_counter()
        program = compile_step(lowered)
    return program, time.perf_counter() - start


def nbytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, also of an abstract one; keys are not counted."""
    return sum(
        int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
