"""R-Drop's loss from two sets of logits, by torch."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ftjax import tasks
from ftjax.errors import UserError
from ftjax.models.language_head import score
from ftjax.regularization.loss import regularized
from ftjax.regularization.words import key_of
from ftjax.testing import build, make_batch
from tests.regularization.settings import config_of, loss_of

ALPHA, ROWS, OUTPUTS = 0.7, 6, 4
F = torch.nn.functional
WEIGHTS = np.array([1, 1, 0, 1, 2, 1], np.float32)


def stub(apply, of_words=False):
    """A model that is a function (params, batch, key) → outputs."""
    base = SimpleNamespace(of_words=of_words, two_sided=False)
    return SimpleNamespace(
        apply=lambda params, batch, key, words: apply(params, batch, key), base=base
    )


def noisy(params, batch, key):
    return params + jax.random.normal(key, params.shape)


def two(params, key):
    """What `noisy` says in the two passes, as torch's."""
    passes = (noisy(params, {}, k) for k in (key, key_of("rdrop", key)))
    return [torch.tensor(np.array(logits), requires_grad=True) for logits in passes]


def symmetric(p, q):
    """½ (KL(P ‖ Q) + KL(Q ‖ P)) of log-probabilities, as the authors' code has it."""
    forth, back = (
        F.kl_div(p, q, reduction="none", log_target=True),
        F.kl_div(q, p, reduction="none", log_target=True),
    )
    return (forth + back).sum(-1) / 2


def classification(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def multilabel(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)


def binaries(p, q):
    each = [torch.stack([F.logsigmoid(x), F.logsigmoid(-x)], -1) for x in (p, q)]
    return symmetric(*each).mean(-1)


def regression(logits, labels):
    return (logits[:, 0] - labels) ** 2


TASKS = {  # name → (labels, loss of an example, divergence)
    "classification": (
        np.arange(ROWS) % OUTPUTS,
        classification,
        lambda p, q: symmetric(p.log_softmax(-1), q.log_softmax(-1)),
    ),
    "multilabel": (np.eye(ROWS, OUTPUTS, dtype=np.float32), multilabel, binaries),
    "regression": (
        np.linspace(-1, 2, ROWS, dtype=np.float32),
        regression,
        lambda p, q: (p - q)[:, 0] ** 2,
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_loss_and_gradient_by_formula(task):
    labels, loss_of_each, divergence = TASKS[task]
    config = config_of(task, rdrop=ALPHA)
    loss = regularized(config, tasks.create(config.task), stub(noisy))
    size = 1 if task == "regression" else OUTPUTS
    params = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, size)).astype(np.float32))
    batch, key = {"labels": labels, "weights": WEIGHTS}, jax.random.key(5)
    found, grad = jax.value_and_grad(lambda params: loss(params, batch, key).total)(params)
    p, q = two(params, key)
    wanted = (loss_of_each(p, torch.tensor(labels)) + loss_of_each(q, torch.tensor(labels))) / 2
    wanted = ((wanted + ALPHA * divergence(p, q)) * torch.tensor(WEIGHTS)).sum()
    wanted.backward()
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, p.grad + q.grad, rtol=1e-4, atol=1e-5)
    assert loss(params, batch, key).weight == WEIGHTS.sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_language_models_tokens(smoothing):
    """The model gives logits for R-Drop, where it gives scores else; both say the same."""
    ids = np.array([[5, 6, 7, 8, 0], [6, 5, 5, 0, 0]])
    batch, key = {"input_ids": ids, "attention_mask": (ids > 0).astype(int)}, jax.random.key(5)
    config = config_of("causal_lm", rdrop=ALPHA)
    config.task.label_smoothing = smoothing
    params = jax.random.normal(jax.random.key(1), (2, 5, 9))

    def scores(params, batch, key):
        x = noisy(params, batch, key)
        names = ("targets", "target_weights", "target_smoothing")
        given = [batch[name] for name in names if name in batch]
        return score(x, jnp.eye(9), *given) if given else x

    model = stub(scores, of_words=True)
    found = regularized(config, tasks.create(config.task), model)(params, batch, key)
    p, q = (x.log_softmax(-1).detach() for x in two(params, key))
    real = torch.tensor(ids[:, 1:] > 0)
    entropy = partial(F.cross_entropy, reduction="sum", label_smoothing=smoothing)
    picked = [entropy(x[:, :-1][real], torch.tensor(ids[:, 1:])[real]) for x in (p, q)]
    wanted = sum(picked) / 2 + ALPHA * symmetric(p, q)[:, :-1][real].sum()
    np.testing.assert_allclose(found.total, wanted, rtol=1e-5)
    assert found.weight == real.sum().item()
    plain = config_of("causal_lm")
    plain.task.label_smoothing = smoothing
    first = regularized(plain, tasks.create(plain.task), model)(params, batch, key)
    np.testing.assert_allclose(first.total, picked[0], rtol=1e-5)


def test_passes_without_dropout_are_refused():
    model, batch = build("llama", {"name": "lora"}), make_batch("llama", 2, 4)

    def trace(model, **settings):
        loss = loss_of(config_of(rdrop=ALPHA, **settings), model)
        return jax.eval_shape(loss, model.shapes, batch, jax.random.key(0))

    with pytest.raises(UserError, match=r"regularization\.rdrop.*method\.dropout"):
        trace(model)
    trace(model, cutoff=0.1)
    trace(build("llama", {"name": "lora", "dropout": 0.1}))
    trace(build("bert", {"name": "full"}))


def test_a_task_without_a_divergence_is_named():
    config = config_of(rdrop=ALPHA)
    with pytest.raises(UserError, match=r"regularization\.rdrop: task\.name=classification"):
        regularized(config, SimpleNamespace(problem_type=None, loss=print), stub(noisy))
