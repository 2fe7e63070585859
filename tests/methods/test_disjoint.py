"""Methods that add to projections, side by side in one model: each as it is alone.

All of them are on projections of their own, in the order of the registry and in reverse, so that
every pair meets. What they train, at which rates, by which updates and penalty, and what they merge
to, is by hand.
"""

import jax
import numpy as np
import pytest

from ftjax import methods, pretrained
from ftjax.methods.additive import Additive
from ftjax.methods.lora import Lora
from ftjax.partition import FROZEN
from ftjax.testing import build, make_batch
from ftjax.training.optimizers import make_optimizer
from tests.methods.bases import folder
from tests.models.random_models import quick

RATE, ALPHA, RANK = 0.1, 6.0, 4
SMALL = {"ia3": {"feedforward": "none"}, "oft": {"block": 8}, "adalora": {"target_rank": 2}}
NAMES = [name for name in methods.METHODS if issubclass(methods.find(name), Additive)]
SGD = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}


def part(number: int, name: str) -> dict:
    """A method on one projection of one layer of its own, some of rank 3 and others of rank 4."""
    known = methods.hyperparameters(name)
    ends = ("query", "key", "value", "output", "up", "down")
    layer, end = divmod(number, len(ends))
    hyper = {"rank": RANK - number % 2, "alpha": ALPHA} | SMALL.get(name, {})
    block = "ffn" if ends[end] in ("up", "down") else "attention"
    target = "word_embeddings" if layer == 2 else f"encoder.layer_{layer}.{block}.{ends[end]}"
    return {"name": name, "targets": (target,), **{k: v for k, v in hyper.items() if k in known}}


@pytest.fixture(scope="module", params=[1, -1], ids=["in order", "in reverse"])
def side_by_side(request, one_device):
    """The model, moved parameters, and each method with its module."""
    # The last is on the table of words, where LoRA may be.
    others = [name for name in NAMES if name != "lora"]
    names = [*others[:: request.param], "lora"]
    parts = [part(number, name) for number, name in enumerate(names)]
    assert len(parts) == 13
    model = build("bert", {"name": "combination", "parts": parts})
    params, _ = pretrained.load(folder("bert"), model, one_device, jax.random.key(0))
    random = np.random.default_rng(0)
    moved = {
        path: np.asarray(leaf + 0.1 * random.normal(size=leaf.shape), np.float32)
        if model.partition.is_trainable(path)
        else np.asarray(leaf)
        for path, leaf in params.items()
    }
    where = [next(iter(part.matched(model.base))) for part in model.method.parts]
    assert len(set(where)) == 13
    return model, moved, list(zip(model.method.parts, where, strict=True))


FIXED = ("lora_n0", "lora_a0", "lora_b0")


def test_each_trains_its_own_leaves(side_by_side):
    model, _, each = side_by_side
    for number, (method, module) in enumerate(each):
        labels = {
            path.rpartition("/")[2]: label
            for path, label in model.partition.labels.items()
            if path.startswith(f"{module}/") and path not in model.base.shapes
        }
        name = methods.name_of(method)
        fixed = {leaf for leaf in labels if leaf in FIXED or (name, leaf) == ("lora_fa", "lora_a")}
        assert labels, name
        for leaf, label in labels.items():
            assert (label == FROZEN) == (leaf in fixed), (name, leaf)
            assert label in (FROZEN, f"{number}_{method.group}")


def test_rates_and_updates_are_each_methods_own(side_by_side):
    model, params, each = side_by_side
    rates = model.rates()
    plus = next(module for method, module in each if methods.name_of(method) == "lora_plus")
    assert rates == {f"{plus}/lora_b": 16.0}
    trainable, frozen = model.partition.split(params)
    labels = {path: model.partition.labels[path] for path in trainable}
    settings = {**SGD, "beta1": 0.9, "beta2": 0.9, "epsilon": 1e-8}
    optimizer = make_optimizer(settings, labels, lambda _: RATE, model.optimizer, rates, 10)
    random = np.random.default_rng(1)
    grads = {p: random.normal(size=x.shape).astype("f") for p, x in trainable.items()}
    updates, _ = optimizer.update(grads, optimizer.init(trainable), trainable, frozen=frozen)
    for method, module in each:
        name = methods.name_of(method)
        for leaf in method.leaves:
            path = f"{module}/{leaf}"
            if path not in updates:
                continue
            wanted = -RATE * grads[path]
            if (name, leaf) == ("lora_plus", "lora_b"):
                wanted = 16 * wanted
            if name == "lora_fa":
                a = params[f"{module}/lora_a"].astype(float)
                scale = method.alpha / method.rank
                gram = a.T @ a + 1e-8 * np.eye(method.rank)
                wanted = np.linalg.solve(gram, wanted) / scale**2
            np.testing.assert_allclose(updates[path], wanted, rtol=1e-3, atol=1e-5, err_msg=path)


def test_the_penalty_is_adaloras_over_its_own(side_by_side):
    model, params, each = side_by_side
    method, module = next(it for it in each if methods.name_of(it[0]) == "adalora")
    a, b = (params[f"{module}/lora_{side}"] for side in "ab")
    away = [np.linalg.norm(x @ x.T - np.eye(method.rank)) for x in (a.T, b)]
    found = model.method.penalty(model.base, model.partition.split(params)[0])
    np.testing.assert_allclose(found, 0.5 * np.mean(away), rtol=1e-5)
    assert list(model.method.report(model.base, params)["ranks"]["modules"]) == [module]


def by_hand(method, w, p):
    """W of the plain projection, by each method's formula."""
    name, s = methods.name_of(method), getattr(method, "alpha", 0) / getattr(method, "rank", 1)
    if name == "rslora":
        s = method.alpha / np.sqrt(method.rank)
    if name in ("lora", "rslora", "lora_plus", "lora_fa"):
        return w + s * p["lora_a"] @ p["lora_b"]
    if name in ("pissa", "olora"):
        return w + s * (p["lora_a"] @ p["lora_b"] - p["lora_a0"] @ p["lora_b0"])
    if name == "dora":
        v = w + s * p["lora_a"] @ p["lora_b"]
        return v * p["lora_m"] / np.linalg.norm(v, axis=0)
    if name == "adalora":
        s = method.alpha / (method.rank + 1e-5)
        return w + s * p["lora_a"] @ np.diag(p["lora_e"]) @ p["lora_b"]
    if name == "loha":
        return w + s * (p["hada_w1_b"] @ p["hada_w1_a"]) * (p["hada_w2_b"] @ p["hada_w2_a"])
    if name == "lokr":
        second = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_b"] @ p["lokr_w2_a"]
        return w + s * np.kron(p["lokr_w1"], second)
    if name == "vera":
        a, b = p["vera_a"][: len(w)], p["vera_b"][:, : w.shape[1]]
        return w + a @ np.diag(p["lambda_d"]) @ b @ np.diag(p["lambda_b"])
    if name == "ia3":
        return w * p["ia3_out"]
    assert name == "oft"
    blocks = []
    for entries in p["oft_r"]:
        q = np.zeros((8, 8))
        q[np.triu_indices(8, 1)] = entries
        q = q - q.T
        blocks.append(np.eye(8) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
    return np.concatenate([r @ w[8 * i : 8 * i + 8] for i, r in enumerate(blocks)])


def test_merged_each_is_its_formula(side_by_side):
    model, params, each = side_by_side
    merged = model.method.merge(model.base, params)
    assert set(merged) == set(model.base.shapes)
    for method, module in each:
        weight = "embedding" if module.endswith("word") else "kernel"
        names = [name for name in method.leaves if f"{module}/{name}" in params]
        leaves = {name: params[f"{module}/{name}"].astype(float) for name in names}
        leaves |= {name: params[name].astype(float) for name in method.shared}
        base = params[f"{module}/{weight}"].astype(float)
        wanted = by_hand(method, base, leaves)
        assert np.abs(wanted - base).max() > 1e-3
        np.testing.assert_allclose(merged[f"{module}/{weight}"], wanted, atol=2e-5, err_msg=module)
    batch, plain = make_batch("bert"), build("bert", {"name": "full"})
    adapted = quick(model.apply)(params, batch)
    np.testing.assert_allclose(quick(plain.apply)(merged, batch), adapted, atol=1e-4)


@pytest.mark.parametrize("first", ["lora", "dora"])
def test_on_the_same_projection_merges_are_done_in_turn(first, one_device):
    """LoRA's kin, then rescaled outputs, then rotated inputs, of the same projections."""
    parts = [
        {"name": first, "rank": 3, "targets": ["query"], "init": "random"},
        {"name": "ia3", "targets": ["query", "key"], "feedforward": "none", "init": "random"},
        {"name": "oft", "block": 8, "targets": ["query"], "init": "random"},
    ]
    model = build("bert", {"name": "combination", "parts": parts})
    params, _ = pretrained.load(folder("bert"), model, one_device, jax.random.key(0))
    batch, plain = make_batch("bert"), build("bert", {"name": "full"})
    adapted = quick(model.apply)(params, batch)
    merged = model.method.merge(model.base, params)
    np.testing.assert_allclose(quick(plain.apply)(merged, batch), adapted, atol=1e-4)


def test_what_a_method_is_on_is_found_once_a_model(monkeypatch):
    asked = []
    selected = Lora.selected
    monkeypatch.setattr(Lora, "selected", lambda *args: asked.append(args) or selected(*args))
    model = build("bert", {"name": "lora_plus", "rank_pattern": {"query": 3}})
    assert model.rates()
    model.method.merge(model.base, model.method.added(model.base, {}))
    assert len(asked) == 1
