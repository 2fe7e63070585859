"""Methods equal AdapterHub's: outputs and gradients under the adapters that its library made."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from ftjax import tuned
from ftjax.methods.fusion import placed_as
from ftjax.paths import Flat
from tests.conftest import build
from tests.models.made import difference, quick

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapterhub"
SMALL = {"reduction": 4}
REFT = {"name": "reft", "rank": 2, "last": 2}
PREFIX = {"name": "prefix_tuning", "length": 5, "projection": 16, "shift": False}
LORA = {"rank": 4, "alpha": 4.0}  # under gates theirs has no α/r
SIDES = {"encoder_prefix": "encoder", "self_prefix": "decoder", "cross_prefix": "cross"}
LAYERS = {  # their layers → ours
    "bert": (r"bert\.encoder\.layer\.(\d+)\.", r"encoder/layer_\1/"),
    "roberta": (r"roberta\.encoder\.layer\.(\d+)\.", r"encoder/layer_\1/"),
    "gpt2": (r"transformer\.h\.(\d+)\.", r"decoder/layer_\1/"),
    "llama": (r"model\.layers\.(\d+)\.", r"decoder/layer_\1/"),
    "t5": (r"transformer\.(\w+)\.block\.(\d+)\.", r"\1/layers/layer_\2/"),
}
PARTS = {
    r"/(attention\.self|self_attn|layer\.0\.SelfAttention)\.": "/attention/",
    r"/layer\.1\.EncDecAttention\.": "/cross/",
    r"/([qv])(uery|alue|_proj)?\.loras\.\w+\.": r"/\1/",
    r"/q/": "/query/",
    r"/v/": "/value/",
    r"/gate\.": "/gate_lora_",
    r"lora_A$": "lora_a",
    r"lora_B$": "lora_b",
    r"prefix_tuning\.prefix_gates\.\w+\.": "gate_prefix_",
    r"adapters\.\w+\.gate\.": "gate_adapter_",
    r"/(attention\.output|attention_adapters)\.": "/attention/",
    r"/(output|output_adapters)\.": "/ffn/",
    r"/layer\.0\.": "/attention/",
    r"(encoder.*)/layer\.1\.": r"\1/ffn/",
    r"/layer\.2\.": "/ffn/",
    r"adapters\.\w+\.scaling": "adapter_scale",
    r"adapters\.\w+\.adapter_(down\.0|up)\.": r"adapter/\1_",
    r"down\.0_": "down_",
    r"_W_(left|right)$": r"_\1",
    r"(down|up)_b$": r"\1_bias",
    r".*\.phm_rule$": "phm_rule",
    r"reft_layer\.refts\.\w+\.units\.0\.": "reft_first_",
    r"reft_layer\.refts\.\w+\.units\.1\.": "reft_last_",
    r"learned_source\.": "",
    r"projection\.(parametrizations\.weight\.original|weight)": "rotation",
    r"adapter_fusion_layer\.[\w,]+\.(query|key|value)\.": r"fusion/\1_",
    "weight$": "kernel",
}
# Whose adapters are at the norm, or the layer.
AFTER_FFN = ("pfeiffer", "adapter_drop", "compacter_pp", "adapter_fusion", "unipelt")


def named(family: str, method: str, tensor: str) -> str:
    """Our path of a parameter of theirs."""
    path = re.sub(*LAYERS[family], tensor)
    for pattern, ours in PARTS.items():
        path = re.sub(pattern, ours, path)
    if method in AFTER_FFN:
        path = path.replace("/ffn/", "/ffn_norm/" if family in ("bert", "roberta") else "/")
    return path


def orthogonal(original: jax.Array, base: jax.Array) -> jax.Array:
    """R (r, d) of torch's orthogonal parametrization by Householder reflections."""
    x, rank = original.T, len(original)
    vectors = jnp.tril(x, -1)
    scales = 2 / (1 + (vectors**2).sum(0))
    vectors, q = vectors + jnp.eye(*x.shape), jnp.eye(*x.shape)
    for j in reversed(range(rank)):
        q = q - scales[j] * jnp.outer(vectors[:, j], vectors[:, j] @ q)
    return (base @ (q * jnp.trunc(jnp.diag(x)))).T


def prefixes(family: str, theirs: Flat) -> Flat:
    """Our leaves of a prefix, which they compute for all layers and for keys and values at once."""
    found = {}
    for tensor, array in theirs.items():
        place, _, leaf = tensor.partition("prefix_tunings.task.")[2].partition(".")
        if not place:
            continue
        side = SIDES[place] if family == "t5" else LAYERS[family][1].split("/")[0]
        if leaf == "wte.weight":
            found[f"prefix_{side}_embedding"] = array
        elif leaf.startswith("control_trans.0"):
            name = "kernel" if leaf.endswith("weight") else "bias"
            found[f"prefix_{side}_{name}"] = array.T
        else:
            name = "kernel" if leaf.endswith("weight") else "bias"
            core = "cross" if side == "cross" else "attention"
            stack = f"{'decoder' if side == 'cross' else side}{'/layers' * (family == 't5')}"
            parts = jnp.split(array, 4)  # of two layers: key, value, key, value
            for number, part in enumerate(parts):
                kind = ("key", "value")[number % 2]
                path = f"{stack}/layer_{number // 2}/{core}/core/prefix_{kind}_{name}"
                found[path] = part.T
    return found


def converted(family: str, method: str, theirs: Flat, buffers: Flat) -> Flat:
    """Our parameters of theirs, differentiably."""
    found = prefixes(family, theirs)
    for tensor, array in theirs.items():
        if "prefix_tunings" in tensor:
            continue
        path = named(family, method, tensor)
        if tensor.endswith(".original"):
            array = orthogonal(array, buffers[tensor.replace("original", "0.base")])
        turned = path.endswith(("kernel", "rotation", "lora_a", "lora_b"))
        found[path] = array.T if turned else array
    return found


def read(folder: Path) -> Flat:
    """The tensors of an adapter or of a fusion."""
    for file in ("adapter.safetensors", "model_adapter_fusion.safetensors"):
        if (folder / file).exists():
            return load_file(folder / file)
    pickled = torch.load(folder / "pytorch_adapter.bin", weights_only=True)
    return {name: tensor.numpy() for name, tensor in pickled.items()}


class Reference:
    """A folder of fixtures."""

    def __init__(self, family: str, method: str) -> None:
        folder = FIXTURES / family / method
        self.family, self.method = family, method
        # Their gates see padding, ours do not.
        whole = "full/" if method == "unipelt" else ""
        stored = load_file(folder / "reference.safetensors")
        self.tensors = {
            name.removeprefix(whole): array
            for name, array in stored.items()
            if name.startswith(whole)
        }
        with safe_open(folder / "reference.safetensors", "np") as file:
            self.count = int(file.metadata()["parameters"])
        stored = read(folder)
        self.gradients = {
            key.removeprefix("gradients/"): array
            for key, array in self.tensors.items()
            if key.startswith("gradients/")
        }
        self.theirs = {name: stored[name] for name in self.gradients}
        self.buffers = {name: array for name, array in stored.items() if name not in self.theirs}

    def batch(self) -> dict[str, np.ndarray]:
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        batch = {name: self.tensors[name] for name in names if name in self.tensors}
        if self.family == "t5" and "reft" in self.method:  # where theirs has the encoder's padding
            batch["decoder_attention_mask"] = batch["attention_mask"]
        return batch

    def ours(self, theirs: Flat) -> Flat:
        return converted(self.family, self.method, theirs, self.buffers)

    def compare(self, model: tuned.Tuned, params: Flat) -> None:
        """Outputs at real tokens agree, and gradients of each of their parameters."""

        def total(theirs, weight):
            hidden = model.apply({**params, **self.ours(theirs)}, self.batch())
            return (hidden * weight).sum(), hidden

        weight = self.tensors["weight"]
        gradients, hidden = quick(jax.grad(total, has_aux=True))(self.theirs, weight)
        real = np.any(weight != 0, -1)
        assert difference(hidden[real], self.tensors["last_hidden_state"][real]) < 1e-4
        largest = max(np.abs(wanted).max() for wanted in self.gradients.values())
        for name, wanted in self.gradients.items():
            if name.endswith("key.bias"):  # which moves all scores alike
                assert max(np.abs(gradients[name]).max(), np.abs(wanted).max()) < 1e-3
            else:
                assert difference(gradients[name], wanted, largest) < 1e-4, name


SETTINGS = {
    "houlsby": SMALL,
    "pfeiffer": SMALL,
    "adapter_drop": {**SMALL, "leave_out": (0,)},
    "parallel": SMALL,
    "scaled_parallel": SMALL,
    "compacter": SMALL,
    "compacter_pp": SMALL,
    "loreft": {**REFT, "kind": "loreft"},
    "noreft": {**REFT, "kind": "noreft"},
    "direft": {**REFT, "kind": "direft"},
    "mam": {"parts": (PREFIX, {"name": "parallel", **SMALL})},
    "unipelt": {"parts": (PREFIX, {"name": "pfeiffer", **SMALL}, {"name": "lora", **LORA})},
}
CASES = [(family, method) for method in SETTINGS for family in ("bert", "llama", "t5")]
CASES += [("roberta", "pfeiffer"), ("gpt2", "pfeiffer")]
CASES.remove(("t5", "adapter_drop"))


@pytest.mark.parametrize(("family", "method"), CASES)
def test_outputs_and_gradients(family, method, one_device):
    folder, reference = FIXTURES / family / "base", Reference(family, method)
    settings = {"name": method, **SETTINGS[method]}
    if family == "t5" and "parts" in settings:
        prefix, *others = settings["parts"]
        settings["parts"] = ({**prefix, "places": tuple(SIDES.values())}, *others)
    model = build(folder, settings, {}, {})
    params, _ = tuned.load(folder, model, one_device, jax.random.key(0))
    added = {path: leaf for path, leaf in model.shapes.items() if path not in model.base.shapes}
    assert set(added) == set(reference.ours(reference.theirs))
    assert sum(leaf.size for leaf in added.values()) == reference.count
    reference.compare(model, params)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_fusion(family, one_device):
    """Also with the adapters that it is over, each read alone and put in its place."""
    folder, reference = FIXTURES / family / "base", Reference(family, "adapter_fusion")
    names = ("first", "second")
    model = build(folder, {"name": "adapter_fusion", "adapters": names, **SMALL}, {}, {})
    params, _ = tuned.load(folder, model, one_device, jax.random.key(0))
    adapters = {}
    for number, name in enumerate(names):
        alone = read(FIXTURES / family / "adapter_fusion" / name)
        adapters |= placed_as(converted(family, "pfeiffer", alone, {}), number)
    added = set(model.shapes) - set(model.base.shapes)
    assert added == {*adapters, *reference.ours(reference.theirs)}
    assert model.partition.counts(model.shapes)[0] == reference.count
    reference.compare(model, {**params, **adapters})
    values = [x for name, x in reference.theirs.items() if name.endswith("value.weight")]
    wanted = 0.01 * sum(((np.eye(len(x)) - x) ** 2).sum() for x in values)
    found = model.method.penalty({**params, **reference.ours(reference.theirs)})
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
