"""Methods equal AdapterHub's: outputs and gradients under the adapters that its library made."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from ftjax import tuned
from tests.conftest import build
from tests.models.made import difference, quick

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapterhub"
NAMES = ("houlsby", "pfeiffer", "parallel", "scaled_parallel", "compacter", "compacter_pp")
SETTINGS = {
    "adapter_drop": {"name": "adapter_drop", "leave_out": (0,)},
}
LAYERS = {  # their layers → ours, by the number of the one and, in T5, the other part
    "bert": (r"bert\.encoder\.layer\.(\d+)", r"encoder/layer_\1"),
    "roberta": (r"roberta\.encoder\.layer\.(\d+)", r"encoder/layer_\1"),
    "gpt2": (r"transformer\.h\.(\d+)", r"decoder/layer_\1"),
    "llama": (r"model\.layers\.(\d+)", r"decoder/layer_\1"),
    "t5": (r"transformer\.(\w+)\.block\.(\d+)", r"\1/layers/layer_\2"),
}
PARTS = {
    r"\.(attention\.output|attention_adapters)(?=\.)": "/attention",
    r"\.(output|output_adapters)(?=\.)": "/ffn",
    r"(?<=encoder)(/.*)\.layer\.0": r"\1/attention",
    r"(?<=encoder)(/.*)\.layer\.1": r"\1/ffn",
    r"(?<=decoder)(/.*)\.layer\.0": r"\1/attention",
    r"(?<=decoder)(/.*)\.layer\.2": r"\1/ffn",
    r"\.adapters\.\w+\.scaling": "/adapter_scale",
    r"\.adapters\.\w+\.adapter_(down\.0|up)\.": r"/adapter/\1_",
    r"down\.0_": "down_",
    r"_W_(left|right)$": r"_\1",
    r"_b$": "_bias",
    r".*\.phm_rule$": "phm_rule",
    "weight$": "kernel",
}
AFTER_FFN = (
    "pfeiffer",
    "adapter_drop",
    "compacter_pp",
)  # whose adapters are around the norm, or the layer


def our_name(family: str, method: str, tensor: str) -> str:
    """Our path of a parameter of theirs."""
    path = re.sub(*LAYERS[family], tensor)
    for pattern, ours in PARTS.items():
        path = re.sub(pattern, ours, path)
    if method in AFTER_FFN:
        path = path.replace("/ffn/", "/ffn_norm/" if family in ("bert", "roberta") else "/")
    return path


def turned(path: str, array: np.ndarray) -> np.ndarray:
    return array.T if path.endswith("kernel") else array


class Reference:
    """A folder of fixtures: parameters and gradients by our names."""

    def __init__(self, family: str, method: str) -> None:
        folder = FIXTURES / family / method
        self.tensors = load_file(folder / "reference.safetensors")
        with safe_open(folder / "reference.safetensors", "np") as file:
            self.count = int(file.metadata()["parameters"])
        self.adapter, self.gradients = {}, {}
        for tensor, array in load_file(folder / "adapter.safetensors").items():
            path = our_name(family, method, tensor)
            self.adapter[path] = turned(path, array)
        for key, array in self.tensors.items():
            if key.startswith("gradients/"):
                path = our_name(family, method, key.removeprefix("gradients/"))
                self.gradients[path] = turned(path, array)

    def batch(self) -> dict[str, np.ndarray]:
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return {name: self.tensors[name] for name in names if name in self.tensors}


def compare(reference: Reference, model: tuned.Tuned, params: dict, adapter: dict) -> None:
    """Outputs at real tokens, and gradients, agree."""

    def total(adapter, batch, weight):
        hidden = model.apply({**params, **adapter}, batch)
        return (hidden * weight).sum(), hidden

    tensors, batch = reference.tensors, reference.batch()
    gradients, hidden = quick(jax.grad(total, has_aux=True))(adapter, batch, tensors["weight"])
    real = np.any(tensors["weight"] != 0, -1)
    assert difference(hidden[real], tensors["last_hidden_state"][real]) < 1e-4
    assert set(gradients) == set(reference.gradients)
    for path, wanted in reference.gradients.items():
        assert difference(gradients[path], wanted) < 1e-4, path


CASES = [(family, method) for method in NAMES for family in ("bert", "llama", "t5")]
CASES += [("roberta", "pfeiffer"), ("gpt2", "pfeiffer"), ("llama", "adapter_drop")]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_outputs_and_gradients(family, method, one_device):
    folder, reference = FIXTURES / family / "base", Reference(family, method)
    settings = SETTINGS.get(method, {"name": method}) | {"reduction": 4}
    model = build(folder, settings, {}, {})
    params, _ = tuned.load(folder, model, one_device, jax.random.key(0))
    added = {path for path in model.shapes if path not in model.base.shapes}
    assert added == set(reference.adapter)
    assert model.partition.counts(model.shapes)[0] == reference.count
    compare(reference, model, params, reference.adapter)
