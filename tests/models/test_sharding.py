"""Every model on eight devices computes what it does on one, and no large parameter stays whole."""

import jax
import numpy as np
import pytest

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.formats.hf import mapping
from ftjax.parallel.mesh import RULES, logical_axes, make_mesh, param_shardings, place_rows
from tests.covering import covering, product
from tests.models.cases import CASES
from tests.models.random_models import (
    build,
    by_layers,
    config_of,
    difference,
    inputs,
    natural,
    parameters,
    quick,
)

ROWS = 4
SIZES = {  # by which the families' configurations say how wide a model is
    "d_ff",
    "d_head",
    "d_inner",
    "d_kv",
    "d_model",
    "decoder_ffn_dim",
    "decoder_vocab_size",
    "dim",
    "embedding_size",
    "encoder_ffn_dim",
    "head_dim",
    "hidden_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "n_embd",
    "n_positions",
    "pooler_hidden_size",
    "position_buckets",
    "vocab_size",
}


@pytest.mark.parametrize("case", by_layers())
def test_sharded_equals_whole(case, parity):
    mesh, model, batch = make_mesh(2, 2, 2), build(case, natural(case)), inputs(case, ROWS)
    params = parameters(model)
    wanted = quick(model.apply)(params, batch)
    shardings = param_shardings(model.shapes, model.axes, mesh)
    with logical_axes(mesh):
        placed = {path: jax.device_put(leaf, shardings[path]) for path, leaf in params.items()}
        found = quick(model.apply)(placed, place_rows(mesh, batch, ROWS))
    assert len(found.sharding.device_set) == 8
    parity.record(case, natural(case), "mesh", difference(found, wanted), limit=1e-5)


AXES = [
    (case, axis) for case in ("bert", "llama", "mixtral", "t5") for axis in ("sequence", "expert")
]


@pytest.mark.parametrize(
    ("case", "axis"), product(AXES, covering(AXES, [("mixtral", "expert"), ("llama", "sequence")]))
)
def test_gradients_over_every_axis_equal_whole(case, axis):
    """Positions, and the experts of a mixture, spread beside rows, parameters and features."""
    mesh = make_mesh(1, 2, 2, **{axis: 2})
    model, batch = build(case, natural(case)), inputs(case, ROWS, length=8)
    params = parameters(model)

    def loss(params, batch):
        return (model.apply(params, batch) ** 2).mean()

    wanted = quick(jax.grad(loss))(params, batch)
    shardings = param_shardings(model.shapes, model.axes, mesh)
    with logical_axes(mesh):
        placed = {path: jax.device_put(leaf, shardings[path]) for path, leaf in params.items()}
        found = quick(jax.grad(loss))(placed, place_rows(mesh, batch, ROWS))
    largest = max(np.abs(grad).max() for grad in wanted.values())
    for path, grad in wanted.items():
        assert difference(found[path], grad, 100 * largest) < 1e-5, path


PLACED = [(case, segments) for case in CASES for segments in ("scan", "unrolled")]


@pytest.mark.parametrize(("case", "segments"), product(PLACED, covering(PLACED)))
def test_no_large_parameter_stays_whole(case, segments):
    """Of a model wide enough that matrices and tables are over 1 MB; only shapes are made."""
    config = config_of(case)
    config |= {name: 64 * config[name] for name in SIZES & config.keys() if config[name]}
    if config.get("position_buckets"):  # of distances
        config["max_relative_positions"] *= 64
    head = {"head": natural(case)}
    model = build_tuned(config, methods.create({"name": "full"}), {"segments": segments}, head)
    shardings = param_shardings(model.shapes, model.axes, make_mesh(2, 2, 2))
    large = {path: leaf for path, leaf in model.shapes.items() if 4 * leaf.size > 1e6}
    assert len(large) > 2
    whole = [path for path in large if shardings[path].is_fully_replicated]
    assert not whole
    for path, axes in model.axes.items():
        assert len(axes) == model.shapes[path].ndim, path
        assert {axis for axis in axes if axis} <= RULES.keys(), path


@pytest.mark.parametrize("case", by_layers())
def test_a_folder_is_read_into_shards(case, tmp_path):
    """Scanned, and each device its slice, also of fused, turned and stacked tensors."""
    plain, model = (build(case, natural(case), segments=how) for how in ("unrolled", "scan"))
    tensors = mapping.to_tensors(parameters(plain), plain.names, prefix=True)
    mapping.write_folder(tmp_path, tmp_path, config_of(case), tensors)
    found, absent = pretrained.load(tmp_path, model, make_mesh(2, 2, 2), jax.random.key(0))
    assert not absent
    for path, wanted in parameters(model).items():
        np.testing.assert_array_equal(found[path], wanted, err_msg=path)
        shards = {shard.data.shape for shard in found[path].addressable_shards}
        assert shards == {found[path].sharding.shard_shape(wanted.shape)}
