"""Bottleneck adapters equal the published formula, worked in numpy."""

import jax
import numpy as np
import pytest
from scipy.special import erf

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.paths import expand
from tests.conftest import CONFIG, build, make_batch, perturbed
from tests.models.random_models import config_of, quick


class NumpyBert:
    """A post-norm BERT encoder in float64, with the adapters of two placements."""

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


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer"])
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
