"""PEFT folders: keys and shapes, what is refused, and the commands that read them.

`golden/peft/METHOD_FAMILY.txt` lists what peft saves for the rows of `tests.methods.peft_cases`;
`python -m tests.formats.test_peft` writes the lists anew, from the library.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft as reference
import pytest
from safetensors.numpy import load_file, save_file

from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.formats.peft import folder as peft
from ftjax.setup.model import place_model
from tests.methods.peft_cases import ROWS, adapted, base_of, their_logits, written
from tests.models.random_models import build, parameters, quick

GOLDEN = Path(__file__).parent / "golden" / "peft"
CASES = [(name, family) for name, row in ROWS.items() for family in row.families]


def listed(shapes) -> str:
    return "".join(f"{key} {'x'.join(map(str, shapes[key]))}\n" for key in sorted(shapes))


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.mark.parametrize(("name", "family"), CASES)
def test_keys_and_shapes(name, family, parent):
    row, base = ROWS[name], base_of(family, parent)
    model = base.under(row.settings(family))
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in model.shapes.items()}
    golden = (GOLDEN / f"{name}_{family}.txt").read_text()
    assert listed({k: x.shape for k, x in peft.to_peft(model, zeros)[1].items()}) == golden
    assert listed(written(adapted(base, row, stacked=True))) == golden


@pytest.mark.parametrize("targets", [("c_attn",), ("query", "value")])
def test_adapters_of_parts_are_exact_in_one_of_the_whole(parent, targets, tmp_path):
    """PEFT's update of GPT-2's c_attn, by its formula, is ours of the parts side by side."""
    base = base_of("gpt2", parent)
    model = base.under({"name": "lora", "rank": 2, "alpha": 6.0, "targets": targets})
    params = base.moved(model)
    peft.write(tmp_path, base.folder, model, params)
    config = json.loads((tmp_path / peft.CONFIG).read_text())
    tensors = load_file(tmp_path / peft.WEIGHTS)
    for layer in range(2):
        name = f"h.{layer}.attn.c_attn"
        scale = config["alpha_pattern"][name] / config["rank_pattern"][name]
        key = f"base_model.model.transformer.{name}.lora_{{}}.weight"
        found = scale * tensors[key.format("A")].T @ tensors[key.format("B")].T
        place, zeros = (
            f"decoder/layer_{layer}/attention",
            np.zeros((32, 2)),
        )
        wanted = [
            params.get(f"{place}/{part}/lora_a", zeros)
            @ params.get(f"{place}/{part}/lora_b", zeros.T)
            for part in ("query", "key", "value")
        ]
        np.testing.assert_allclose(found, 3 * np.concatenate(wanted, 1), atol=1e-6)
    whole = reference.PeftModel.from_pretrained(base.copy(), tmp_path, is_trainable=True)
    theirs = sum(p.numel() for name, p in whole.named_parameters() if "lora_" in name)
    ours = sum(leaf.size for path, leaf in params.items() if "/lora_" in path)
    parts = 3 if targets == ("c_attn",) else 2
    assert ours == 2 * parts * 2 * (32 + 32) and theirs == 2 * parts * 2 * (32 + 96)


@pytest.fixture(scope="module")
def lora(parent, tmp_path_factory):
    """A base, its method's settings, and an adapter of them in a folder."""
    base, settings = base_of("bert", parent), {"name": "lora", "rank": 2, "alpha": 6.0}
    model, folder = base.under(settings), tmp_path_factory.mktemp("lora")
    peft.write(folder, base.folder, model, base.moved(model))
    return base, settings, folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 3}, r"method\.rank=3 differs from r=2 of .*adapter_config\.json"),
        ({"alpha": 5.0}, r"method\.alpha=5\.0 differs from lora_alpha=6"),
        ({"targets": ("query",)}, r"value\.lora_A.*which method\.targets does not adapt"),
        (
            {"targets": ("query", "key", "value")},
            r"lacks 'base_model.*key\.lora_A.*method\.targets",
        ),
        ({"name": "loha"}, r"peft_type='LORA', and method\.name=loha is stored as LOHA"),
        ({"name": "rslora"}, r"use_rslora=False, and the method True"),
    ],
)
def test_an_adapter_of_other_settings_is_refused(lora, change, message):
    base, settings, folder = lora
    model = base.under({**settings, **change})
    with pytest.raises(UserError, match=message):
        peft.load_into(model, base.moved(model), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_qalora": True}, "use_qalora=True is not implemented: merge it into its base"),
        ({"init_lora_weights": "corda"}, "changes the base's weights"),
        ({"peft_type": "XLORA"}, "peft_type='XLORA'"),
        ({"r": "two"}, r"r=.two. has the wrong type: a whole number expected"),
    ],
)
def test_a_configuration_that_is_not_implemented_is_refused(lora, change, message, tmp_path):
    base, settings, folder = lora
    config = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    save_file(load_file(folder / "adapter_model.safetensors"), tmp_path / peft.WEIGHTS)
    model = base.under(settings)
    with pytest.raises(UserError, match=message):
        peft.load_into(model, base.moved(model), tmp_path)


def test_parameters_that_are_no_modules_are_refused():
    """XLNet's attention has no modules: a folder of its adapters could not be loaded."""
    model = build("xlnet", "classification", method={"name": "lora", "targets": ("query",)})
    with pytest.raises(UserError, match=r"rel_attn\.q is a parameter of its own"):
        peft.to_peft(model, parameters(model))


def test_damaged_folders_are_refused(lora, tmp_path):
    base, settings, folder = lora
    model = base.under(settings)

    def refused(message):
        with pytest.raises(UserError, match=message):
            peft.load_into(model, base.moved(model), tmp_path)

    refused("adapter_config.json does not exist")
    (tmp_path / peft.CONFIG).write_text((folder / peft.CONFIG).read_text())
    refused("has no adapter_model.safetensors")
    (tmp_path / "adapter_model.bin").touch()
    refused("adapter_model.bin is corrupt")
    (tmp_path / peft.WEIGHTS).write_bytes((folder / peft.WEIGHTS).read_bytes()[:-10])
    refused("corrupt or truncated")
    tensors = load_file(folder / peft.WEIGHTS)
    key = next(key for key in tensors if key.endswith("lora_A.weight"))
    save_file({**tensors, key: tensors[key][:, 1:]}, tmp_path / peft.WEIGHTS)
    refused(r"lora_A\.weight' has shape \(2, 31\), but the method's is \(2, 32\)")
    head = "base_model.model.classifier.weight"
    save_file({**tensors, head: tensors[head][1:]}, tmp_path / peft.WEIGHTS)
    refused(r"classifier\.weight' has shape \(2, 32\)")
    headless = {key: x for key, x in tensors.items() if "classifier" not in key}
    save_file(headless, tmp_path / peft.WEIGHTS)
    _, absent = peft.load_into(model, base.moved(model), tmp_path)
    assert sorted(absent) == ["classifier/bias", "classifier/kernel"]


def test_training_starts_from_an_adapter(lora):
    base, settings, folder = lora
    config = default_config("lora")
    config.model.path, config.model.adapter = str(base.folder), str(folder)
    config.method.rank, config.method.alpha = settings["rank"], settings["alpha"]
    config.data.max_length = 16
    run = place_model(config, ("a", "b", "c"))
    tensors = peft.to_peft(run.tuned, run.trainable)[1]
    stored = load_file(folder / peft.WEIGHTS)
    assert tensors.keys() == stored.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, stored[key], err_msg=key)
    config.method.rank = 4
    with pytest.raises(UserError, match=r"method\.rank=4 differs from r=2"):
        place_model(config, ("a", "b", "c"))


def test_p_tuning_is_read_as_the_vectors_that_it_made(parent, tmp_path):
    base = base_of("bert", parent)
    model = base.under({"name": "p_tuning", "length": 4})
    params = base.moved(model)
    peft.write(tmp_path, base.folder, model, params)
    theirs = reference.PeftModel.from_pretrained(base.copy(), tmp_path).eval()
    batch = base.batch
    wanted = their_logits(theirs, batch).detach().numpy()
    np.testing.assert_allclose(quick(model.apply)(params, batch), wanted, atol=1e-4)
    settings = peft.read(tmp_path)
    assert settings == {"name": "prompt_tuning", "length": 4}
    plain = base.under(settings)
    read, absent = peft.load_into(plain, base.moved(plain, seed=5), tmp_path)
    assert not absent
    np.testing.assert_allclose(quick(plain.apply)(read, batch), wanted, atol=1e-4)
    with pytest.raises(UserError, match=r"method\.name=prompt_tuning"):
        peft.load_into(model, params, tmp_path)


def main() -> None:
    """Writes the lists."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, family in CASES:
            theirs = adapted(base_of(family, Path(folder)), ROWS[name], stacked=True)
            (GOLDEN / f"{name}_{family}.txt").write_text(listed(written(theirs)))


if __name__ == "__main__":
    sys.exit(main())
