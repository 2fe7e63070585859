"""What must hold for every method on every kind of model: a new one is tested by registering it."""

from functools import cache, cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import methods, pretrained, tuned
from ftjax.errors import UserError
from ftjax.parallel.mesh import fitted, logical_axes, make_mesh, param_shardings, place_rows
from ftjax.paths import Flat, expand
from ftjax.quantization import Quantized, dequantized
from ftjax.training.optimizers import make_optimizer
from ftjax.training.step import init_state, lower_step, make_step
from ftjax.workdir.checkpoints import Checkpoints
from tests.conftest import cross_entropy
from tests.covering import covering, product
from tests.methods.bases import ALIKE, BASES, HEAD, build, folder, make_batch
from tests.models.made import quick

TRAINING = [name for name in methods.METHODS if methods.find(name).trains]
# Where a method does not fit a kind of model, and what it then says.
REFUSED = {("bitfit", "llama"): "bias", ("bitfit", "t5"): "bias"}
PAIRS = [(n, base) for n in TRAINING for base in BASES if (n, base) not in REFUSED]
FAULTS = [  # that were found in one kind of model
    *(("lora", "llama"), ("qlora", "llama"), ("reft", "llama"), ("galore", "llama")),
    *(("houlsby", "t5"), ("prefix_tuning", "t5"), ("p_tuning", "t5"), ("adalora", "t5")),
    *(("lisa", "t5"), ("unipelt", "t5"), ("layerwise_lr_decay", "t5"), ("top_k", "bert")),
]
FEW = covering(PAIRS, FAULTS)
FIRST = [next(pair for pair in FEW if pair[0] == name) for name in TRAINING]
PACKED = [pair for pair in PAIRS if pair[1] != "t5"]  # it has no positions to start anew
OWN = [pair for pair in PACKED if pair[0] not in ALIKE]  # by --all the others, which compute alike
FEW_PACKED = covering(OWN, {*FEW} & {*OWN})
UNPACKED = {"unipelt": "cannot tell packed examples"}  # and what such methods say of packed rows
ROUNDING = {"reft": 2e-6}  # adds an exact zero, beside which the rest is compiled otherwise
# What fits small models.
SMALL: dict[str, dict[str, Any]] = {
    "galore": {"rank": 8},
    "compacter": {"reduction": 8},
    "compacter_pp": {"reduction": 8},
    "adapter_fusion": {"reduction": 4},  # all relus of a narrower one may be dead
    "reft": {"last": 1, "tied": True},  # llama's classifier reads the last token alone
}
OPTIMIZER = {"name": "adamw", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
ROWS, STEPS = 16, 3


def adam(path: str, shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def galore(path: str, shape: tuple[int, ...]) -> int:
    """Zhao et al. 2024, table 1: mr for the projection and 2nr for the moments."""
    rank, small, large = SMALL["galore"]["rank"], min(shape), max(shape)
    if path.endswith("/kernel") and not path.startswith(("classifier", "pooler")):
        return small * rank + 2 * large * rank
    return adam(path, shape)


def adalora(path: str, shape: tuple[int, ...]) -> int:
    """Zhang et al. 2023, eqs. 9-10: importance and its uncertainty besides, and what is kept."""
    kept = int(np.prod(shape)) if path.endswith("/lora_e") else 0
    return adam(path, shape) * (2 if "/lora_" in path else 1) + kept


# Numbers of optimizer state, of a leaf.
MOMENTS = {"galore": galore, "adalora": adalora}


def settings(name: str) -> dict[str, Any]:
    return {"name": name, **SMALL.get(name, {})}


class Case:
    """A method on a small model."""

    def __init__(self, name: str, base: str) -> None:
        self.name, self.base = name, base
        self.model = build(base, settings(name))
        self.params = self.load(self.model)
        self.batch = make_batch(base)

    def load(self, model: tuned.Tuned) -> Flat:
        mesh = make_mesh(devices=jax.devices()[:1])
        params, _ = pretrained.load(folder(self.base), model, mesh, jax.random.key(0))
        return {path: jax.tree.map(np.asarray, leaf) for path, leaf in params.items()}

    @cached_property
    def moved(self) -> Flat:
        """Parameters with every trainable leaf moved, so that a method does something."""
        random, moved = np.random.default_rng(1), dict(self.params)
        for path in filter(self.model.partition.is_trainable, moved):
            noise = random.normal(0, 0.05, moved[path].shape)
            moved[path] = moved[path] + noise.astype(np.float32)
        return moved

    @cached_property
    def _applied(self) -> Any:
        return quick(lambda params, batch: self.model.apply(params, batch))

    def outputs(self, params: Flat) -> np.ndarray:
        params = jax.tree.map(np.asarray, params)  # one program, wherever they lie
        return np.asarray(self._applied(params, self.batch))

    def plain(self, params: Flat) -> np.ndarray:
        """Of the base model, which is compiled once for all methods."""
        model, apply = plain(self.base)
        base = {path: params[path] for path in model.shapes}
        if any(isinstance(leaf, Quantized) for leaf in base.values()):
            base = quick(dequantized)(base)
        return np.asarray(apply(base, self.batch))

    @cached_property
    def trained(self) -> "Trained":
        return Trained(self, self.model, self.params, make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module", params=product(PAIRS, FEW, each=False), ids="-".join)
def it(request) -> Case:
    """Tests come case by case."""
    return Case(*request.param)


@cache
def plain(base: str) -> tuple[tuned.Tuned, Any]:
    model = build(base, {"name": "full"})
    return model, quick(lambda params, batch: model.apply(params, batch))


def pad_rows(x: np.ndarray, count: int) -> np.ndarray:
    return np.pad(x, ((0, count), *((0, 0),) * (x.ndim - 1)))


class Trained:
    """A few steps, from given parameters; `empty` rows without an example are in each batch."""

    def __init__(
        self, case: Case, model: tuned.Tuned, params: Flat, mesh: Any, empty: int = 0
    ) -> None:
        self.model, batch = model, make_batch(case.base, ROWS)
        batch = {name: pad_rows(x, empty) for name, x in batch.items()}
        shardings = param_shardings(model.shapes, model.axes, mesh)
        placed = {}
        for path, leaf in params.items():
            leaf = typed(leaf, model.dtype(path))
            ndim = model.shapes[path].ndim
            placed[path] = jax.tree.map(
                lambda x, s=shardings[path], n=ndim: jax.device_put(x, fitted(s, n, x.shape)), leaf
            )
        trainable, self.frozen = model.partition.split(placed)
        phase = model.at_step(0).partition
        self.active = {path for path in trainable if phase.is_trainable(path)}
        labels = {path: phase.labels[path] for path in self.active}

        def loss_fn(params, batch, key):
            return cross_entropy(model.apply(params, batch), batch)

        def rate(step):
            return 1e-3

        method = model.method
        optimizer = make_optimizer(OPTIMIZER, labels, rate, model.optimizer, model.rates(), STEPS)
        state = init_state(jax.tree.map(jnp.copy, trainable), optimizer, 0, mesh, phase)
        self.moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
        step = make_step(
            loss_fn,
            optimizer,
            rate,
            clip_norm=1.0,
            accumulation=1,
            penalty=lambda params, frozen: method.penalty(model.base, params),
            active=phase,
        )
        batch = place_rows(mesh, batch, ROWS + empty)
        with logical_axes(mesh):
            program = lower_step(step, state, self.frozen, batch, mesh).compile()
        self.losses = []
        for _ in range(STEPS):
            state, metrics = program(state, self.frozen, batch)
            self.losses.append(float(metrics["loss"]))
        self.state = state


def test_1_step_0_is_the_base_model(it):
    """Exactly, unless no hyperparameters of the method are the identity."""
    difference = np.abs(it.outputs(it.params) - it.plain(it.params)).max()
    if it.model.method.identity:
        assert difference <= ROUNDING.get(it.name, 0)
    else:
        assert difference > 1e-4


def test_1_another_init_is_not(it):
    """So that the test before cannot pass vacuously."""
    other = it.model.method.non_identity
    if not other:  # a selection, or soft prompts: shown above, or below when moved
        adds = set(it.model.shapes) != set(it.model.base.shapes)
        assert not adds or not it.model.method.identity
        return
    changed = build(it.base, {**settings(it.name), **other})
    params = it.load(changed)
    outputs = quick(lambda p, batch: changed.apply(p, batch))(params, it.batch)
    assert np.abs(outputs - it.plain(params)).max() > 1e-4


def test_2_3_what_trains_moves_and_what_is_frozen_has_nothing(it):
    run = it.trained
    assert run.active
    for path, leaf in run.state.params.items():
        moved = np.any(np.asarray(leaf) != it.params[path])
        assert moved == (path in run.active), path
        assert leaf.dtype == jnp.float32
    for path, leaf in run.frozen.items():
        jax.tree.map(np.testing.assert_array_equal, leaf, it.params[path])
    # Adam's two moments of what trains, or what the method's paper says, and nothing else.
    shapes = {path: run.state.params[path].shape for path in run.active}
    assert run.moments == sum(MOMENTS.get(it.name, adam)(path, shapes[path]) for path in shapes)


def test_4_merged_is_a_plain_model_or_an_error(it):
    try:
        merged = it.model.method.merge(it.model.base, it.moved)
    except UserError as error:
        assert "cannot be merged" in str(error)
        return
    assert set(merged) == set(it.model.base.shapes)
    limit = 1e-2 if it.name in ("adalora", "oft") else 1e-4
    np.testing.assert_allclose(it.plain(merged), it.outputs(it.moved), atol=limit)


def test_5_disabled_is_the_base_model(it):
    disabled = quick(lambda params, batch: it.model.apply(params, batch, adapted=False))
    wanted = it.plain(it.moved)
    np.testing.assert_allclose(disabled(it.moved, it.batch), wanted, atol=1e-6)
    if set(it.model.shapes) != set(it.model.base.shapes):
        assert np.abs(it.outputs(it.moved) - wanted).max() > 1e-4


def test_6_saved_and_loaded(it, tmp_path):
    run = it.trained
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(run.state, {"progress": 1}, best_step=1)
    checkpoints.wait()
    params, state = checkpoints.params(STEPS, run.state.params), None
    state = checkpoints.restore(STEPS, run.state)
    assert set(params) == {p for p in run.model.shapes if run.model.partition.is_trainable(p)}
    for path, leaf in run.state.params.items():
        np.testing.assert_array_equal(params[path], leaf)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(run.state), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    on_disk = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(checkpoints._shapes(STEPS)))
    assert on_disk == sum(leaf.size for leaf in params.values())
    wanted = it.outputs({**run.frozen, **run.state.params})
    np.testing.assert_array_equal(it.outputs({**run.frozen, **params}), wanted)
    checkpoints.close()


BAD = {
    "rank": [0, -1, 10_000],
    "targets": [("nonsense",), "quer(y", ("query", "valeu")],
    "reduction": [0, 10_000],
    "k": [0, 99, -99],
    "length": [0, -1],
    "block": [0, 7],
    "dropout": [1.0],
    "init": ["nonsense"],
    "activation": ["nonsense"],
    "every": [0],
    "decay": [0.0, 1.5],
    "layers": [99],
}
BAD_CASES = [
    (name, key, value)
    for name in TRAINING
    for key in methods.hyperparameters(name)
    for value in BAD.get(key, [])
]


@pytest.mark.parametrize(("name", "key", "value"), BAD_CASES)
def test_7_bad_hyperparameters_are_named(name, key, value):
    with pytest.raises(UserError, match=rf"method\.{key}"):
        build("bert", {**settings(name), key: value}).at_step(0)


@pytest.mark.parametrize(("name", "base"), list(REFUSED))
def test_7_what_does_not_fit_a_model_is_said(name, base):
    with pytest.raises(UserError, match=REFUSED[name, base]):
        build(base, settings(name))


FEW_FIRST = [pair for pair in FIRST if pair[0] not in ALIKE]


@pytest.mark.parametrize("it", product(FIRST, FEW_FIRST, each=False), ids="-".join, indirect=True)
def test_8_bfloat16_base_under_float32_adapters(it):
    """On one kind of model a method: what it adds, and of which type, is its own."""
    model = build(it.base, settings(it.name), {"dtype": "bfloat16", "segments": "scan"})
    params = {path: typed(stacked(it.params, path), model.dtype(path)) for path in model.shapes}
    trainable, frozen = model.partition.split(params)

    def loss(trainable, frozen):
        return cross_entropy(model.apply({**frozen, **trainable}, it.batch), it.batch).total

    value, grads = quick(jax.value_and_grad(loss))(trainable, frozen)
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads.values())
    assert {leaf.dtype for leaf in grads.values()} == {jnp.dtype("float32")}
    kernels = [leaf for path, leaf in frozen.items() if path in model.base.shapes]
    floats = [x for x in jax.tree.leaves(kernels) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.bfloat16 for x in kernels if hasattr(x, "dtype"))
    assert floats or not kernels


def test_9_scanned_remat_and_sharded_give_the_same_losses(it):
    """All at once: scanned layers, rematerialization, eight devices on three axes, and batches
    half of whose rows are empty."""
    assert len(set(it.trained.losses)) == STEPS  # the steps do something
    model = build(it.base, settings(it.name), {"segments": "scan", "remat": "full"})
    params = {path: stacked(it.params, path) for path in model.shapes}
    run = Trained(it, model, params, make_mesh(2, 2, 2), empty=ROWS)
    np.testing.assert_allclose(run.losses, it.trained.losses, atol=1e-5)


def typed(leaf: Any, dtype: Any) -> Any:
    """A parameter of a type, unless it is quantized."""
    return leaf.astype(dtype) if isinstance(leaf, np.ndarray) else leaf


def stacked(params: Flat, path: str) -> Any:
    """A parameter of scanned layers, from each layer's."""
    if expand(path) == [path]:
        return params[path]
    return jax.tree.map(lambda *layers: np.stack(layers), *(params[p] for p in expand(path)))


@pytest.mark.parametrize("it", product(PACKED, FEW_PACKED, each=False), ids="-".join, indirect=True)
def test_9_packed_equals_apart(it):
    pooling = "mean" if it.base == "bert" else "cls"
    model = build(it.base, settings(it.name), {}, {**HEAD, "pooling": pooling})
    params = {path: it.moved[path] for path in model.shapes}
    sizes, length = (5, 7), 7
    ids = np.random.default_rng(0).integers(5, 64, (2, length))
    mask = (np.arange(length) < np.array(sizes)[:, None]).astype(np.int32)
    packed = {
        "input_ids": np.concatenate([ids[0, :5], ids[1]])[None],
        "segment_ids": np.repeat([1, 2], sizes)[None],
        "position_ids": np.concatenate([np.arange(n) for n in sizes])[None],
        "starts": np.array([[0, sizes[0]]]),
    }
    apply = quick(lambda params, batch: model.apply(params, batch))
    if it.name in UNPACKED:
        with pytest.raises(UserError, match=UNPACKED[it.name]):
            apply(params, packed)
        return
    apart = apply(params, {"input_ids": ids * mask, "attention_mask": mask})
    np.testing.assert_allclose(apply(params, packed)[0], apart, atol=1e-5)
