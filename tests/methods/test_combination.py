"""A combination does what its parts do, and refuses parts that do not go together."""

import json

import jax
import numpy as np
import optax
import pytest

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.config import check, default_config, load_config
from ftjax.config.saved import from_json, to_json
from ftjax.errors import UserError
from ftjax.methods.combination import Combination
from ftjax.testing import BASES, HEAD, build, make_batch
from tests.methods.bases import folder
from tests.models.random_models import quick

PARTS = ({"name": "lora", "rank": 2, "targets": ["query"]}, {"name": "bitfit"})


def combined(*parts, base="bert", **settings):
    return build(base, {"name": "combination", "parts": parts}, settings)


@pytest.fixture(scope="module")
def loaded(one_device):
    """A moved model under LoRA, adapters and rescaled keys, and what goes into it."""
    lora = {"name": "lora", "rank": 2, "init": "random"}
    model = combined(lora, {"name": "houlsby", "init": "normal"}, {"name": "ia3", "init": "random"})
    params, _ = pretrained.load(folder("bert"), model, one_device, jax.random.key(0))
    return model, params


def test_each_part_adds_and_trains_its_own(loaded):
    model, _ = loaded
    added = {path for path in model.shapes if path not in model.base.shapes}
    wanted, count = set(), 0
    for part in model.method.parts:
        alone = build_tuned(BASES["bert"], part, {}, HEAD)
        wanted |= set(alone.shapes) - set(alone.base.shapes)
        count += alone.partition.counts(alone.shapes)[0] - 64 * 2 - 2
    assert added == wanted
    assert model.partition.counts(model.shapes)[0] == count + 64 * 2 + 2
    assert model.partition.groups == ("0_lora", "1_adapter", "2_ia3", "head")


def test_merges_are_done_in_turn(one_device):
    settings = ({"name": "lora", "init": "random"}, {"name": "ia3", "init": "random"}, "bitfit")
    model = combined(*settings)
    params, _ = pretrained.load(folder("bert"), model, one_device, jax.random.key(0))
    batch = make_batch("bert")
    adapted = quick(model.apply)(params, batch)
    merged = model.method.merge(model.base, params)
    assert set(merged) == set(model.base.shapes)
    plain = build("bert", {"name": "full"})
    np.testing.assert_allclose(quick(plain.apply)(merged, batch), adapted, atol=1e-4)
    assert np.abs(quick(plain.apply)({p: params[p] for p in merged}, batch) - adapted).max() > 1e-2


def test_what_cannot_be_merged(loaded):
    model, params = loaded
    with pytest.raises(UserError, match="houlsby changes the computation and cannot be merged"):
        model.method.merge(model.base, params)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("lora", "full"), "lora and full both train"),
        (({"name": "top_k", "k": 1}, "layer_norm"), "top_k and layer_norm both train 'encoder"),
        (("lora", "rslora"), 'lora and rslora add the same parameter.*"lora_a"'),
        (("vera", {"name": "vera", "targets": ["up"]}), 'add the same parameter.*"vera_a"'),
        (("ia3", "dora"), "dora reads the weights of '.*value' that ia3 changes; name dora first"),
        (("houlsby", "parallel"), 'houlsby and parallel add the same parameter.*"adapter"'),
        (("qlora", {"name": "top_k", "k": 1}), "top_k trains 'encoder.*', which qlora stores"),
        (("qlora", {"name": "qlora", "over": {"name": "ia3"}}), "qlora is there twice"),
        (("lora",), "two methods or more"),
        ((), "two methods or more"),
        (("lora", "bitfitt"), "did you mean 'bitfit'"),
        (("lora", {"rank": 2}), "neither a method's name nor has one"),
        (("lora", "prompting"), "prompting trains nothing"),
        (("lora", {"name": "bitfit", "rank": 2}), "rank is not an option of 'bitfit'"),
    ],
)
def test_what_does_not_go_together(parts, message):
    with pytest.raises(UserError, match=message):
        combined(*parts)


def test_rules_that_overlap_are_a_union():
    """The pooler is the first part's, layers the second's; frozen rules before them still hold."""
    patterns = (("encoder/layer_0/.*/query/.*", "frozen"), ("encoder/layer_0/.*", "mine"))
    model = combined("head", {"name": "regex", "patterns": patterns}, {"name": "lora"})
    labels = model.partition.labels
    assert labels["pooler/kernel"] == labels["classifier/bias"] == "head"
    assert labels["encoder/layer_0/attention/query/kernel"] == "frozen"
    assert labels["encoder/layer_0/ffn/up/kernel"] == "1_mine"
    assert labels["encoder/layer_1/ffn/up/kernel"] == "frozen"
    assert labels["encoder/layer_1/attention/query/lora_a"] == "2_lora"


def test_optimizers_rates_steps_and_penalties_are_the_parts():
    seen = []

    class Heard(type(methods.create({"name": "lora"}))):
        def optimizer(self, base, group, core, rest, steps):
            seen.append(group)
            return core

        def rate_of(self, base, path):
            return 2.0 if path.endswith("_b") else 1.0

        def penalty(self, base, params):
            return params["x"] ** 2

    frozen = {"name": "gradual_unfreezing", "every": 1}
    both = Combination((Heard(), methods.create({"name": "ia3"})))
    one = optax.identity()
    assert (
        both.optimizer(None, "0_lora", one, one, 1)
        is both.optimizer(None, "head", one, one, 1)
        is one
    )
    assert seen == ["lora", "head"]
    assert both.rate_of(None, "a/lora_b") == 2.0
    assert both.penalty(None, {"x": 3.0}) == 9.0
    assert methods.create({"name": "combination"}).penalty(None, {}) is None
    model = combined(frozen, {"name": "lora"}, base="bert")
    first, last = model.at_step(0).partition, model.at_step(9).partition
    assert first.labels["encoder/layer_1/ffn/up/kernel"] == "frozen"
    assert last.labels["encoder/layer_1/ffn/up/kernel"].startswith("0_layer")
    assert first.labels["encoder/layer_1/attention/query/lora_a"] == "1_lora"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(PARTS),
        repr(list(PARTS)),
        '[{"name": "pfeiffer", "leave_out": [0]}, {"name": "prefix_tuning", "shift": false}]',
        "lora,bitfit",
    ],
)
def test_from_the_command_line_and_back_from_a_file(text, tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from ftjax.config import default_config\n"
        "def get_config(method='full'):\n"
        "    return default_config(method)\n"
    )
    overrides = ["--config.method.name=combination", f"--config.method.parts={text}"]
    config = check(load_config(str(file), overrides))
    method = methods.create(config.method)
    assert len(method.parts) == 2
    again = check(from_json(to_json(config)))
    assert methods.create(again.method) == method
    assert hash(methods.create(again.method)) == hash(method)


def test_from_a_configuration():
    config = default_config("combination")
    config.method.parts = PARTS
    method = methods.create(check(from_json(to_json(config))).method)
    assert method.parts[0] == methods.create({"name": "lora", "rank": 2, "targets": ("query",)})
