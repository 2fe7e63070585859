"""ReFT's interventions are on the right tokens, however rows are laid out, and stay orthonormal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.generation.decode import next_logits, read_prompt
from ftjax.methods.example_tokens import ranks
from ftjax.methods.reft import orthonormal
from ftjax.testing import BASES, build
from tests.models.random_models import parameters, quick

FULL = {"name": "reft", "rank": 2, "first": 2, "last": 1, "init": "kaiming"}


def hidden_model(base, **settings):
    model = build(base, {**FULL, **settings}, {}, {"head": None})
    return model, parameters(model)


def by_hand(segments):
    """Tokens of the same example before and after each."""
    places = range(len(segments))
    same = [[i for i in places if segments[i] == segments[j] > 0] for j in places]
    return [
        [sum(i < j for i in same[j]) for j in places],
        [sum(i > j for i in same[j]) for j in places],
    ]


@pytest.mark.parametrize(
    "segments",
    [[1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0], [1, 1, 2, 3, 3, 3, 0, 0], [0, 1, 0, 1, 2, 0, 2, 2]],
)
def test_ranks(segments):
    found = ranks(jnp.asarray([segments, segments]))
    real = np.asarray(segments) > 0
    for ours, wanted in zip(found, by_hand(segments), strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[1][real], np.asarray(wanted)[real])


def test_states_change_at_the_first_and_last_tokens_alone():
    """In one layer, by the formula, with padding on the left."""
    model, params = hidden_model("bert", layers=(1,))
    ids = np.random.default_rng(0).integers(5, 64, (1, 8))
    mask = np.array([[0, 0, 1, 1, 1, 1, 1, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    base = np.asarray(quick(lambda p: model.apply(p, batch, adapted=False))(params))
    ours = np.asarray(quick(lambda p: model.apply(p, batch))(params))
    wanted = base.copy()
    for spots, unit in (([2, 3], "first"), ([6], "last")):
        leaves = (f"encoder/layer_1/reft_{unit}_{name}" for name in ("rotation", "kernel", "bias"))
        x, kernel, bias = (np.asarray(params[leaf], np.float64) for leaf in leaves)
        q, t = np.linalg.qr(x)
        r = (q * np.sign(np.diag(t))).T
        h = base[0, spots]
        wanted[0, spots] = h + (h @ kernel + bias - h @ r.T) @ r
    np.testing.assert_allclose(ours, wanted, atol=1e-4)
    assert set(model.shapes) - set(model.base.shapes) == {
        f"encoder/layer_1/reft_{unit}_{leaf}"
        for unit in ("first", "last")
        for leaf in ("rotation", "kernel", "bias")
    }


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_packed_and_left_padded_rows_equal_each_alone(base):
    model, params = hidden_model(base)
    ids = np.random.default_rng(0).integers(5, 64, (2, 7))
    sizes = (2, 7)
    apply = quick(lambda params, batch: model.apply(params, batch))
    packed = {
        "input_ids": np.concatenate([ids[0, :2], ids[1]])[None],
        "segment_ids": np.repeat([1, 2], sizes)[None],
        "position_ids": np.concatenate([np.arange(n) for n in sizes])[None],
    }
    alone = [apply(params, {"input_ids": ids[i : i + 1, :n]}) for i, n in enumerate(sizes)]
    np.testing.assert_allclose(apply(params, packed), np.concatenate(alone, 1), atol=1e-4)
    mask = np.array([[0, 0, 0, 0, 0, 1, 1], [1] * 7])
    left = {
        "input_ids": np.stack([np.roll(ids[0], 5), ids[1]]),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
    }
    found = apply(params, left)
    np.testing.assert_allclose(found[0, 5:], alone[0][0], atol=1e-4)
    np.testing.assert_allclose(found[1], alone[1][0], atol=1e-4)


def test_rows_stay_orthonormal():
    method = methods.create({"name": "reft"})
    x = jax.random.normal(jax.random.key(0), (16, 3))
    optimizer = optax.adam(0.3)
    state, target = optimizer.init(x), jax.random.normal(jax.random.key(1), (16, 3))
    for _ in range(5):
        grad = jax.grad(lambda x: ((orthonormal(x) - target) ** 2).sum())(x)
        updates, state = optimizer.update(grad, state)
        moved, x = x, x + updates
        q = np.asarray(orthonormal(x))
        np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-5)
        assert np.abs(q - np.asarray(orthonormal(moved))).max() > 1e-2
    assert method.units == {"first": 1}


def test_tied_tokens_share():
    model, _ = hidden_model("bert", tied=True)
    assert not any("reft_last" in path for path in model.shapes)
    one, other = hidden_model("bert", tied=True), hidden_model("bert")
    copied = {p: one[1][p.replace("last", "first")] for p in other[0].shapes}
    ids = np.random.default_rng(0).integers(5, 64, (2, 6))
    outputs = [
        np.asarray(quick(lambda p, m=m: m.apply(p, {"input_ids": ids}))(params))
        for m, params in ((one[0], one[1]), (other[0], copied))
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_generation_intervenes_on_the_same_tokens():
    """Prompts of one token and of five; the cached steps equal whole rows read anew."""
    head = {"head": "causal_lm"}
    settings = {**FULL, "first": 3, "last": 0}
    model = build_tuned(BASES["llama"], methods.create(settings), {"segments": "scan"}, head)
    params, room = parameters(model), 4
    ids = np.random.default_rng(0).integers(5, 64, (2, 5 + room))
    mask = np.array([[0, 0, 0, 0, 1], [1] * 5], np.int32)
    prompt = {"input_ids": ids[:, :5], "attention_mask": mask}
    logits, cache, kept = quick(lambda p: read_prompt(model, p, prompt, room))(params)
    found = [logits]
    step = quick(lambda p, cache, last, n: next_logits(model, p, cache, kept, last, n))
    for count in range(1, room):
        logits, cache = step(params, cache, ids[:, 4 + count], count)
        found.append(logits)
    wide = np.concatenate([mask, np.ones((2, room), int)], 1)
    whole = {"input_ids": ids, "attention_mask": wide}
    whole["position_ids"] = np.maximum(wide.cumsum(1) - 1, 0)
    wanted = quick(lambda p: model.apply(p, whole))(params)
    base = quick(lambda p: model.apply(p, whole, adapted=False))(params)
    assert np.abs(wanted - base)[:, 4:].max() > 1e-2
    np.testing.assert_allclose(np.stack(found, 1), wanted[:, 4 : 4 + room], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", "x"), ("first", -1), ("first", 0), ("layers", (4,)), ("layers", "a"), ("rank", 65)],
)
def test_bad_hyperparameters(key, value):
    with pytest.raises(UserError, match=rf"method\.{key}"):
        build("bert", {"name": "reft", key: value})
