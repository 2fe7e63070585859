"""Bottleneck adapters equal the published formula, worked in numpy."""

import jax
import numpy as np
import pytest
import torch
from scipy.special import erf

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.methods.adapter import ACTIVATIONS
from ftjax.paths import expand
from tests.conftest import CONFIG, build, make_batch, perturbed
from tests.models import random_models
from tests.models.random_models import config_of, quick


class NumpyBert:
    """A post-norm BERT encoder in float64, with the adapters of a placement."""

    def __init__(self, params, placement):
        self.p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
        self.placement = placement

    def dense(self, x, name):
        return x @ self.p[f"{name}/kernel"] + self.p[f"{name}/bias"]

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return normal * self.p[f"{name}/scale"] + self.p[f"{name}/bias"]

    def adapter(self, x, name):
        down = x @ self.p[f"{name}/adapter/down_kernel"] + self.p[f"{name}/adapter/down_bias"]
        swish = self.placement == "houlsby"
        active = down / (1 + np.exp(-down)) if swish else np.maximum(down, 0)
        return active @ self.p[f"{name}/adapter/up_kernel"] + self.p[f"{name}/adapter/up_bias"]

    def layer(self, x, mask, name):
        heads = CONFIG["num_attention_heads"]

        def split(y):
            return y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        q, k, v = (split(self.dense(x, f"{name}/attention/{n}")) for n in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        scores = np.where(mask[:, None, None] > 0, scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        context = (weights / weights.sum(-1, keepdims=True)) @ v
        context = context.transpose(0, 2, 1, 3).reshape(x.shape)
        h = self.dense(context, f"{name}/attention/output")
        if self.placement == "houlsby":
            h = h + self.adapter(h, f"{name}/attention")
        x = self.norm(h + x, f"{name}/attention_norm")
        up = self.dense(x, f"{name}/ffn/up")
        h = self.dense(up * 0.5 * (1 + erf(up / np.sqrt(2))), f"{name}/ffn/down")
        if self.placement == "houlsby":
            h = h + self.adapter(h, f"{name}/ffn")
        if self.placement == "parallel":
            h = h + 4.0 * self.adapter(x, f"{name}/ffn")  # He et al. 2022, table 1
        if self.placement == "scaled_parallel":
            h = h + self.p[f"{name}/ffn/adapter_scale"] * self.adapter(x, f"{name}/ffn")
        z = h + x
        if self.placement == "pfeiffer":
            z = self.adapter(self.norm(z, f"{name}/ffn_norm"), f"{name}/ffn_norm") + z
        return self.norm(z, f"{name}/ffn_norm")

    def __call__(self, batch):
        e = "embeddings"
        x = self.p[f"{e}/word/embedding"][batch["input_ids"]]
        x = x + self.p[f"{e}/position/embedding"][: x.shape[1]]
        x = x + self.p[f"{e}/token_type/embedding"][batch["token_type_ids"]]
        x = self.norm(x, f"{e}/norm")
        for i in range(CONFIG["num_hidden_layers"]):
            x = self.layer(x, batch["attention_mask"], f"encoder/layer_{i}")
        return x


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "parallel", "scaled_parallel"])
def test_hidden_states_equal_the_formula(name, tiny, one_device):
    whole = build(tiny, {"name": name, "reduction": 4, "init": "normal"})
    params, _ = pretrained.load(tiny, whole, one_device, jax.random.key(0))
    params, batch = perturbed(params, whole), make_batch()
    from dataclasses import replace

    hidden = replace(whole, model=build(tiny, {"name": "full"}, {}, {}).model)
    ours = np.asarray(quick(hidden.apply)(params, batch))
    real = batch["attention_mask"] > 0
    wanted = NumpyBert(params, name)(batch)
    np.testing.assert_allclose(ours[real], wanted[real], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "scale"), [("houlsby", 1), ("pfeiffer", 1), ("parallel", 4), ("scaled_parallel", 1)]
)
def test_a_constant_is_added_after_feed_forward(name, scale):
    """Where norms stand before sub-layers: as the last projection's bias is, times the scale.

    Not the same in each dimension, which the last norm would take away.
    """
    model, plain = (
        random_models.build("gpt2", None, method=method)
        for method in ({"name": name, "reduction": 4}, {"name": "full"})
    )
    params, shapes = random_models.parameters(plain), plain.shapes
    moved, adapted = dict(params), dict(params)
    for path in model.shapes.keys() - shapes.keys():
        shape = model.shapes[path].shape
        adapted[path] = np.full(shape, scale if path.endswith("_scale") else 0, np.float32)
        if path.endswith("up_bias"):
            adapted[path] = np.linspace(-0.5, 0.5, *shape, dtype=np.float32)
            layer = "/".join(path.split("/")[:2])
            last = "attention/output" if "/attention/" in path else "ffn/down"
            moved[f"{layer}/{last}/bias"] = params[f"{layer}/{last}/bias"] + scale * adapted[path]
    ids = {"input_ids": np.arange(10).reshape(2, 5), "attention_mask": np.ones((2, 5), int)}
    found, wanted = quick(model.apply)(adapted, ids), quick(plain.apply)(moved, ids)
    assert np.abs(quick(plain.apply)(params, ids) - wanted).max() > 1e-2
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "parallel", "scaled_parallel"])
def test_first_values(name, tiny, one_device):
    """At the base model, or all of N(0, 0.02); AdapterHub's parallel ones are of U(±1/√d)."""
    for init in ("zero", "normal"):
        model = build(tiny, {"name": name, "reduction": 2, "init": init})
        params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
        of = {
            leaf: np.concatenate([np.ravel(x) for p, x in params.items() if p.endswith(leaf)])
            for leaf in ("down_kernel", "up_kernel", "down_bias", "up_bias")
        }
        assert not np.any(of["down_bias"]) and not np.any(of["up_bias"])
        assert np.std(of["up_kernel"]) == pytest.approx(0.02 if init == "normal" else 0, rel=0.1)
        if init == "zero" and "parallel" in name:
            bound = 1 / np.sqrt(CONFIG["hidden_size"])
            assert 0.98 * bound < np.abs(of["down_kernel"]).max() <= bound
            assert np.std(of["down_kernel"]) == pytest.approx(bound / np.sqrt(3), rel=0.1)
        else:
            assert np.std(of["down_kernel"]) == pytest.approx(0.02, rel=0.1)
        scales = [float(x[0]) for p, x in params.items() if p.endswith("adapter_scale")]
        assert scales == [1.0] * (4 if name == "scaled_parallel" else 0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torchs(name):
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    theirs = {"swish": "silu"}.get(name, name)
    wanted = getattr(torch.nn.functional, theirs)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](x), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["pfeiffer", "parallel"])
def test_what_is_as_wide_as_the_model_is_spread_as_it_is(name, tiny):
    """The narrow side is on every device whole."""
    model = build(tiny, {"name": name, "reduction": 4})
    wide, narrow = CONFIG["hidden_size"], CONFIG["hidden_size"] // 4
    added = model.shapes.keys() - model.base.shapes.keys()
    assert len(added) == 4 * CONFIG["num_hidden_layers"]
    for path in added:
        sizes = [{"embed": wide, "rank": narrow}[axis] for axis in model.axes[path]]
        assert tuple(sizes) == model.shapes[path].shape, path


def test_adapters_are_dropped_from_the_first_layer_unasked(tiny):
    model = build(tiny, {"name": "adapter_drop"})
    added = {path.split("/")[1] for path in model.shapes if "adapter" in path}
    assert added == {"layer_1", "layer_2", "layer_3"}


@pytest.mark.parametrize("segments", ["unrolled", "scan"])
@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "parallel"])
def test_layers_are_left_out(name, tiny, segments):
    model = build(tiny, {"name": name, "leave_out": (0, 2)}, {"segments": segments})
    added = {layer for path in model.shapes if "adapter" in path for layer in expand(path)}
    assert {path.split("/")[1] for path in added} == {"layer_1", "layer_3"}


@pytest.mark.parametrize("leave_out", [(4,), (-1,), (0, 1, 2, 3)])
def test_layers_that_cannot_be_left_out(tiny, leave_out):
    with pytest.raises(UserError, match=r"method\.leave_out"):
        build(tiny, {"name": "pfeiffer", "leave_out": leave_out})


def test_shared_layers_cannot_be_left_out():
    settings = methods.create({"name": "adapter_drop"})
    with pytest.raises(UserError, match=r"method\.leave_out: layers of this model share"):
        build_tuned(config_of("albert"), settings)
