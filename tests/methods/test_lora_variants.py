"""Variants of LoRA whose training differs: by peft's own optimizers, and by the formulas."""

import jax
import numpy as np
import optax
import peft
import pytest
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

from ftjax import pretrained, testing
from ftjax.formats.peft import folder as files
from ftjax.training.optimizers import make_optimizer
from tests.methods import bases
from tests.methods.peft_cases import Base, base_of, stepper, their_logits, their_loss
from tests.models.random_models import quick

RATE, STEPS = 0.01, 20


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Base:
    return base_of("bert", tmp_path_factory.getbasetemp())


def ours(model, base, params, **settings):
    """Losses of our steps under the method's own optimizer, and the parameters after them."""
    trainable, frozen = model.partition.split(params)
    labels = {path: model.partition.labels[path] for path in trainable}
    settings = {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "momentum": 0.0, **settings}
    optimizer = make_optimizer(
        settings, labels, lambda step: RATE, model.optimizer, model.rates(), STEPS
    )
    losses, state, grad = [], optimizer.init(trainable), stepper(model, base, RATE)

    def update(grads, state, trainable):
        updates, state = optimizer.update(grads, state, trainable, frozen=frozen)
        return optax.apply_updates(trainable, updates), state

    update = quick(update)
    for _ in range(STEPS):
        _, loss, _, grads = grad(trainable, frozen)
        losses.append(float(loss))
        trainable, state = update(grads, state, trainable)
    return losses, {**frozen, **trainable}


def theirs(model, base, optimizer, after_step=lambda step: None):
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = their_loss(their_logits(model, base.batch), base.labels)
        loss.backward()
        optimizer.step()
        after_step(step)
        losses.append(loss.item())
    return losses


def beside(base, settings, folder):
    """Our model and parameters, and peft's of the same adapter."""
    model = base.under(settings)
    params = base.moved(model)
    files.write(folder, base.folder, model, params)
    reference = peft.PeftModel.from_pretrained(base.copy(), folder, is_trainable=True).eval()
    return model, params, reference


def test_lora_plus_follows_the_reference(bert, tmp_path):
    settings = {"name": "lora_plus", "rank": 4, "ratio": 4.0}
    model, params, reference = beside(bert, settings, tmp_path)
    optimizer = create_loraplus_optimizer(
        reference, torch.optim.SGD, lr=RATE, loraplus_lr_ratio=4.0
    )
    first, *_, vectors = optimizer.param_groups
    first["params"] += vectors["params"]  # the head's bias, which is no B
    vectors["params"] = []
    wanted = theirs(reference, bert, optimizer)
    found, _ = ours(model, bert, params, name="sgd")
    assert found[-1] < found[0] - 1e-2
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_lora_fa_follows_the_reference(bert, tmp_path, monkeypatch):
    from peft.optimizers import lorafa

    # Its product in bfloat16 differs, and its epsilon is added before the bias correction.
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    settings = {"name": "lora_fa", "rank": 4, "alpha": 6.0}
    model, params, reference = beside(bert, settings, tmp_path)
    optimizer = create_lorafa_optimizer(reference, r=4, lora_alpha=6, lr=RATE)
    for group in optimizer.param_groups:
        group["eps"] = 1e-12
    wanted = theirs(reference, bert, optimizer)
    found, after = ours(model, bert, params, name="adamw", epsilon=1e-12)
    assert found[-1] < found[0] - 1e-2
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    for path, leaf in after.items():
        assert path.endswith("lora_b") == bool("lora_" in path and np.any(leaf != params[path]))


@pytest.mark.parametrize("segments", ["unrolled", "scan"])
def test_lora_fa_moves_weights_along_the_full_gradient(segments):
    """s A ΔB is the projection of the weights' gradient on what A reaches: A A⁺ G."""
    model = testing.build("bert", {"name": "lora_fa", "alpha": 6.0}, {"segments": segments})
    optimizer = model.optimizer("lora", optax.identity(), optax.identity(), 1)
    random, shapes = np.random.default_rng(0), model.base.shapes
    path = next(path for path in model.shapes if path.endswith("query/lora_a"))
    module, s = path.removesuffix("/lora_a"), model.method.scale
    a = random.normal(size=model.shapes[path].shape)
    full = random.normal(size=shapes[f"{module}/kernel"].shape)  # G
    grads = {f"{module}/lora_b": s * np.swapaxes(a, -1, -2) @ full}
    frozen = {path: np.asarray(a, np.float32)}
    updates, _ = optimizer.update(
        jax.tree.map(np.float32, grads), optimizer.init(grads), grads, frozen=frozen
    )
    moved = s * a @ np.asarray(updates[f"{module}/lora_b"])
    np.testing.assert_allclose(moved, a @ np.linalg.pinv(a) @ full, atol=1e-4)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_starts_from_the_weights_layer_by_layer(name, one_device):

    folder, settings = bases.folder("bert"), {"name": name, "alpha": 4.0, "targets": "all-linear"}
    model = testing.build("bert", settings, {"segments": "scan"})
    params, _ = pretrained.load(folder, model, one_device, jax.random.key(0))
    s, r = model.method.scale, model.method.rank
    for module in model.method.matched(model.base):
        kernel, a, b = (
            np.asarray(params[f"{module}/{x}"], np.float64) for x in ("kernel", "lora_a", "lora_b")
        )
        matrices = [x.reshape(-1, *x.shape[-2:]) for x in (kernel, a, b)]
        for w, a0, b0 in zip(*matrices, strict=True):
            if name == "pissa":  # the best approximation of rank r (Eckart and Young)
                rest = np.linalg.svd(w, compute_uv=False)[r:]
                np.testing.assert_allclose(
                    np.linalg.norm(w - s * a0 @ b0), np.linalg.norm(rest), rtol=1e-4
                )
                np.testing.assert_allclose(a0.T @ a0, b0 @ b0.T, atol=1e-4)
            else:  # the projection of Wᵀ's columns on the first r of them, orthonormalized
                np.testing.assert_allclose(b0 @ b0.T, np.eye(r), atol=1e-5)
                basis = np.linalg.qr(w.T[:, :r])[0]
                np.testing.assert_allclose(a0 @ b0, w @ basis @ basis.T, atol=1e-4)
        for x in "ab":
            start = params[f"{module}/lora_{x}0"]
            np.testing.assert_array_equal(params[f"{module}/lora_{x}"], start)
