"""AdaLoRA's training equals `peft`'s: losses, what is pruned and when, what is left."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from safetensors.numpy import load_file

from ftjax import methods, tuned
from ftjax.build import build_tuned
from ftjax.config import check, load_config
from ftjax.errors import UserError
from ftjax.formats.peft import folder as files
from ftjax.methods.adalora import ranks
from ftjax.methods.allocation import Schedule, best
from ftjax.paths import expand
from ftjax.runs.train import train
from ftjax.training.optimizers import make_optimizer
from tests.methods.peft_cases import base_of, their_logits
from tests.models import random_models
from tests.models.random_models import quick

pytestmark = pytest.mark.usefixtures("first_device")

STEPS, RATE = 20, 0.1
HYPER = {"rank": 6, "target_rank": 3, "alpha": 6.0, "begin": 3, "end": 5, "interval": 2}
THEIRS = {"tinit": 3, "tfinal": 5, "deltaT": 2, "total_step": STEPS, "orth_reg_weight": 0.5}
OPTIMIZER = {"name": "sgd", "weight_decay": 0.0, "momentum": 0.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twenty steps of both: losses, and which triplets are left after each step."""
    base, folder = (
        base_of("bert", tmp_path_factory.getbasetemp()),
        tmp_path_factory.mktemp("adalora"),
    )
    settings = {"name": "adalora", "targets": "all-linear", **HYPER}
    model = base.under(settings, "scan")
    params = base.moved(model)
    files.write(folder, base.folder, model, params)
    config = peft.PeftConfig.from_pretrained(folder)
    for name, value in THEIRS.items():
        setattr(config, name, value)
    theirs = peft.PeftModel.from_pretrained(
        base.copy(), folder, config=config, is_trainable=True
    ).eval()
    trainable, frozen = model.partition.split(params)
    labels = {path: model.partition.labels[path] for path in trainable}
    optimizer = make_optimizer(OPTIMIZER, labels, lambda step: RATE, model.optimizer, {}, STEPS)
    batch, wanted = base.batch, base.labels

    def loss(trainable):
        logits = model.apply({**frozen, **trainable}, batch)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], -1)
        return -picked.mean() + model.method.penalty(model.base, trainable)

    def step(trainable, state):
        value, grads = jax.value_and_grad(loss)(trainable)
        updates, state = optimizer.update(grads, state, trainable, frozen=frozen)
        return optax.apply_updates(trainable, updates), state, value

    step, state = quick(step), optimizer.init(trainable)
    tensors = [tensor for tensor in theirs.parameters() if tensor.requires_grad]
    theirs_optimizer = torch.optim.SGD(tensors, RATE)
    losses, left = [], []
    for number in range(STEPS):
        trainable, state, value = step(trainable, state)
        theirs_optimizer.zero_grad()
        inputs = {name: torch.tensor(array) for name, array in batch.items()}
        found = theirs(**inputs, labels=torch.tensor(wanted)).loss
        found.backward()
        theirs_optimizer.step()
        theirs.base_model.update_and_allocate(number)
        losses.append((float(value), found.item()))
        left.append((pattern(model, trainable), their_pattern(theirs)))
    return model, trainable, np.array(losses), left, (base, theirs)


def pattern(model: tuned.Tuned, params) -> dict[str, list[bool]]:
    found = {}
    for path in (path for path in params if path.endswith("/lora_e")):
        modules = expand(path.removesuffix("/lora_e"))
        rows = np.asarray(params[path]).reshape(len(modules), -1)
        found |= {
            model.base.names[name]: (row != 0).tolist()
            for name, row in zip(modules, rows, strict=True)
        }
    return found


def their_pattern(model) -> dict[str, list[bool]]:
    return {
        name.split(".lora_E")[0].removeprefix("base_model.model.bert."): (tensor != 0)
        .view(-1)
        .tolist()
        for name, tensor in model.named_parameters()
        if "lora_E" in name
    }


def test_losses_follow_the_reference(run):
    losses = run[2]
    assert losses[-1, 0] < losses[0, 0] - 1e-2
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-4)


def test_the_same_triplets_are_left_after_every_step(run):
    sizes = []
    for ours, theirs in run[3]:
        assert ours == theirs
        sizes.append(sum(map(sum, ours.values())))
    total = 6 * len(run[3][0][0])
    assert sizes[3] == total and sizes[4] < total and sizes[-1] == total // 2


def test_ranks_tells_what_each_layer_kept(run):
    model, params, _, left, _ = run
    found = ranks(params)
    assert model.method.report(model.base, params) == {
        "ranks": {"sum": sum(found.values()), "modules": found}
    }
    assert {model.base.names[name]: n for name, n in found.items()} == {
        name: sum(row) for name, row in left[-1][0].items()
    }
    assert len(set(found.values())) > 1  # they differ by layer


def test_a_folder_that_peft_has_cut_is_read(run, tmp_path):
    """Equal logits: of theirs here, with triplets cut out of tensors, and of ours there."""
    params, left, (base, theirs) = run[1], *run[3:]
    theirs.save_pretrained(tmp_path)
    sizes = {
        x.shape[0] for key, x in load_file(tmp_path / files.WEIGHTS).items() if "lora_E" in key
    }
    assert sizes == {sum(row) for row in left[-1][1].values()} and len(sizes) > 1
    again = base.under(files.read(tmp_path))
    assert again.method.rank == HYPER["rank"]
    found, absent = files.load_into(again, base.moved(again, seed=5), tmp_path)
    assert not absent and sum(ranks(found).values()) == sum(ranks(params).values())
    with torch.no_grad():
        wanted = their_logits(theirs, base.batch).numpy()
    logits = quick(again.apply)(found, base.batch)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    ours = tmp_path / "ours"
    files.write(ours, base.folder, again, found)
    back = peft.PeftModel.from_pretrained(base.copy(), ours, is_trainable=True).eval()
    with torch.no_grad():
        np.testing.assert_allclose(their_logits(back, base.batch), wanted, rtol=1e-4, atol=1e-5)
    config = json.loads((tmp_path / files.CONFIG).read_text())
    cut = next(name for name, kept in config["rank_pattern"].items() if not all(kept))
    config["rank_pattern"][cut] = [True] * 6
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has \d triplets, and its rank_pattern 6"):
        files.load_into(again, found, tmp_path)


def test_the_result_of_a_run_tells_the_ranks(config_file, tmp_path):
    config = load_config(f"{config_file}:adalora", [])
    config.method.update(rank=4, target_rank=2, begin=1.0, end=1.0)
    config.train.update(steps=8, eval_every=8)
    config.model.segments, config.data.buckets = "scan", 1  # few programs
    train(check(config), tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())["ranks"]
    modules = found["modules"]
    assert len(modules) == 4 and all(0 <= n <= 4 for n in modules.values())
    assert found["sum"] == sum(modules.values()) == 2 * len(modules)


def test_the_budget_is_the_papers_cubic():
    schedule = Schedule(begin=10, last=60, interval=10, share=0.25)
    wanted = [int(100 + 300 * (1 - (step - 10) / 50) ** 3) for step in range(10, 61)]
    found = [int(schedule.budget(jnp.asarray(step), 400)) for step in range(10, 61)]
    assert np.abs(np.subtract(found, wanted)).max() <= 1  # float32 beside float64
    assert found[0] == 400 and found[-1] == 100
    assert [step for step in range(100) if schedule.due(step)] == [20, 30, 40, 50, 60]


def test_the_best_are_of_all_layers_together():
    scores = {"a": jnp.array([5.0, 1.0]), "b": jnp.array([[4.0, 2.0], [3.0, 0.0]])}
    kept = best(scores, jnp.asarray(3))
    assert {path: x.tolist() for path, x in kept.items()} == {
        "a": [True, False],
        "b": [[True, False], [True, False]],
    }
    assert all(x.all() for x in best(scores, jnp.asarray(6)).values())


@pytest.mark.parametrize(
    ("hyper", "key"),
    [
        ({"target_rank": 13}, "target_rank"),
        ({"interval": 0}, "interval"),
        ({"beta1": 1.0}, "beta1"),
    ],
)
def test_bad_hyperparameters(hyper, key):
    from ftjax import methods

    with pytest.raises(UserError, match=rf"method\.{key}"):
        methods.create({"name": "adalora", **hyper})


def test_a_schedule_longer_than_the_run_is_refused():
    from ftjax import methods

    method = methods.create({"name": "adalora", "begin": 10, "end": 10})
    with pytest.raises(UserError, match=r"method\.begin=10 and method\.end=10"):
        method.optimizer(None, "lora", optax.identity(), optax.identity(), 20)


def test_what_is_pruned_is_zero_at_any_rate():
    """Also where another method slows its layer down: one triplet in four is left."""
    hyper = {"rank": 4, "target_rank": 1, "begin": 0, "end": 1}
    parts = [{"name": "layerwise_lr_decay", "decay": 0.5}, {"name": "adalora", **hyper}]
    method = methods.create({"name": "combination", "parts": parts})
    model = build_tuned(random_models.config_of("llama"), method, {}, {"head": "causal_lm"})
    params, frozen = model.partition.split(random_models.parameters(model))
    rates = model.rates()
    assert rates["decoder/layer_0/attention/query/lora_e"] == 0.125
    labels = {path: model.partition.labels[path] for path in params}
    optimizer = make_optimizer(OPTIMIZER, labels, lambda _: RATE, model.optimizer, rates, 4)
    state, random = optimizer.init(params), np.random.default_rng(0)
    for _ in range(4):
        grads = {p: random.normal(size=x.shape).astype(np.float32) for p, x in params.items()}
        updates, state = optimizer.update(grads, state, params, frozen=frozen)
        params = optax.apply_updates(params, updates)
    left = ranks({path: x for path, x in params.items() if path.endswith("lora_e")})
    assert sum(left.values()) == len(left)
