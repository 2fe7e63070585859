"""Every key of config.json is read as transformers reads it, refused, or changes nothing there."""

import re
from copy import deepcopy
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ftjax import pretrained
from ftjax.errors import UserError
from ftjax.formats.folder import Weights, read_config
from ftjax.formats.hf import mapping
from ftjax.models import FAMILIES, configure
from ftjax.models.config_keys import FIXED, INERT
from ftjax.models.layers import Options
from tests.models.cases import CASES, LLAMA3
from tests.models.other_keys import FAMILY, NESTED, OLDER, VALUES, base_of, other, others, table_of
from tests.models.random_models import natural
from tests.models.reference import LABELS, Reference, difference
from tests.models.test_parity import applied, build, said

# Attributes of configurations that no config.json sets.
DERIVED = {"get_text_config", "num_labels", "_attn_implementation"}
# Of models for images and of an export; a head that is not among ours.
ELSEWHERE = {
    "gemma3_text": {"image_token_id", "mm_tokens_per_image", "text_config", "vision_config"},
    "mbart": {"gradient_checkpointing"},
    "modernbert": {"sliding_window"},  # half of `local_attention`
    "xlnet": {"n_layers"},
}
RECORDS = {"architectures", "dtype", "id2label", "label2id", "return_dict", "transformers_version"}
INERT_VALUES = {
    **dict.fromkeys(("bos_token_id", "cls_token_id", "sep_token_id", "pad_token_id"), 9),
    "eos_token_id": 9,
    "chunk_size_feed_forward": 3,
    "output_hidden_states": True,
    "problem_type": "multi_label_classification",
    "use_cache": False,
    "is_encoder_decoder": False,
    "conv_act": "relu",
    "conv_groups": 2,
    "mem_len": 4,
    "reuse_len": 2,
    "same_length": True,
    "use_mems_eval": False,
    "use_mems_train": True,
    "start_n_top": 2,
    "end_n_top": 2,
    "deterministic_flash_attn": True,
    "sparse_prediction": False,
    "sparse_pred_ignore_index": -100,
    "reorder_and_upcast_attn": True,
    "summary_activation": "relu",
    "summary_first_dropout": 0.3,
    "summary_last_dropout": 0.3,
    "summary_proj_to_labels": False,
    "summary_type": "mean",
    "summary_use_proj": False,
    "pretraining_tp": 2,
    "router_aux_loss_coef": 0.7,
    "embd_pdrop": 0.3,
    "original_max_position_embeddings": 16,
    "forced_eos_token_id": 9,
    "_sliding_window_pattern": 2,
}
NEWER = {"rope_parameters", "layer_types", "attention_layers", "dense_act_fn", "is_gated_act"}
# With what keys of windows do something.
WINDOWS = {"sliding_window": 2, "max_window_layers": 1, "layer_types": None}
WINDOWS |= {"use_sliding_window": True}
# Whose layers are turned alike, besides Phi 3's, and whose kinds of layers have their own.
PLAIN = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2")
PHI, KINDS = ("phi3",), ("gemma3_text", "modernbert")
POOLED = ("deberta-v3", "modernbert", "xlnet")  # whose classifiers have keys of their own


def test_every_key_that_transformers_knows_has_its_place():
    missed = {}
    for kind in FAMILIES:
        cls = CONFIG_MAPPING[kind]
        table, name = table_of(kind), cls.__module__.split(".")[-2]
        text = Path(import_module(f"{cls.__module__.rpartition('.')[0]}.modeling_{name}").__file__)
        text = text.read_text(encoding="utf-8")
        asked = set(re.findall(r"config\.(\w+)", text))
        asked |= set(re.findall(r"getattr\([\w.]*config, \"(\w+)\"", text))
        known = {field.name for field in fields(cls)} | asked
        placed = table.read | table.inert | table.fixed.keys() | table.aliases.keys() | INERT
        left = known - placed - FIXED.keys() - DERIVED - ELSEWHERE.get(kind, set())
        missed |= {kind: left} if left else {}
    assert not missed


def found(config: dict):
    """Our configuration, or why it is refused."""
    try:
        return configure(config, Options())
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_absent_is_their_default(kind):
    case = next(case for case in CASES if base_of(case)["model_type"] == kind)
    base = base_of(case)
    known = {field.name: field.default for field in fields(CONFIG_MAPPING[kind])}
    for name in table_of(kind).read - {"num_hidden_layers", "num_layers"}:
        default = known.get(name, MISSING)
        if default is MISSING or (name in ("tie_word_embeddings",) and kind in ("t5", "mt5")):
            continue
        absent = found({key: value for key, value in base.items() if key != name})
        if "lacks" not in str(absent):
            assert absent == found({**base, name: default}), name


@pytest.mark.parametrize("case", CASES)
def test_each_key_that_is_read_is_used(case):
    base = base_of(case)
    kind = base["model_type"]
    table = table_of(kind)
    assert table.read <= VALUES.keys()
    for name in table.read:
        value = other(kind, base, name)
        value = VALUES[name] if value is None else value
        newer = NEWER if name in OLDER else ()
        start = {key: each for key, each in base.items() if key not in newer}
        if "use_sliding_window" in table.read and name in WINDOWS:
            start |= WINDOWS
            value = False if name == "use_sliding_window" else value
        if start.get(name) == value or FAMILY.get(kind, {}).get(name, 0) is None:
            continue
        if (case, name) == ("deberta-v3", "tie_word_embeddings"):  # its head is tied anyway
            continue
        assert found({**start, name: value}) != found(start), name
    for name, values in table.fixed.items():
        value = not values[0] if isinstance(values[0], bool) else "other"
        assert f"{name}=" in str(found({**base, name: value}))
    for name, canonical in table.aliases.items():
        assert found({**base, name: 60}) == found({**base, canonical: 60})
    for name in (INERT | table.inert) - table.read:
        assert found({**base, name: "other"}) == found(base)
    assert found({**base, "of_another_library": 1}) == found(base)


@pytest.mark.parametrize("case", CASES)
def test_keys_that_change_nothing_change_nothing_there(case):
    base = base_of(case)
    kind = base["model_type"]
    table, head = table_of(kind), natural(case)
    known = {field.name for field in fields(CONFIG_MAPPING[kind])}
    inert = ((INERT & known) | table.inert) - table.read - RECORDS
    assert inert <= INERT_VALUES.keys()
    name = configure(base, Options()).heads[head].architecture
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(CONFIG_MAPPING[kind].from_dict(base)).eval()
    config = CONFIG_MAPPING[kind].from_dict(
        {**base, **{name: INERT_VALUES[name] for name in inert}}
    )
    changed = cls(config).eval()
    changed.load_state_dict(model.state_dict())
    ids = torch.tensor(np.random.default_rng(0).integers(10, 64, (3, 12)))
    batch = {"input_ids": ids, "labels": ids[:, :12]}
    with torch.no_grad():
        one, two = model(**batch), changed(**batch)
    torch.testing.assert_close(two.logits, one.logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(two.loss, one.loss, rtol=1e-6, atol=1e-6)


LINEAR = {"rope_type": "linear", "factor": 3.0}
SCALED = {name: value for name, value in LLAMA3.items() if not name.startswith(("orig", "rope_th"))}
TURNED = [  # families, keys
    (PLAIN, {}),
    (PLAIN, {"rope_theta": 50.0}),
    (PLAIN, {"rope_scaling": SCALED, "rope_theta": 50.0}),  # of the length that config.json has
    (PLAIN, {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    (PLAIN, {"rope_scaling": LINEAR, "rope_parameters": LLAMA3}),
    (PLAIN, {"rope_scaling": {}, "rope_parameters": LINEAR, "rope_theta": 50.0}),
    (PHI, {"rope_scaling": {"rope_theta": 50.0}, "rope_parameters": {"rope_theta": 30.0}}),
    (PHI, {"rope_parameters": {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.25}),
    (KINDS, {"rope_theta": 50.0}),
    (KINDS, {"rope_theta": 50.0, "rope_local_base_freq": 30.0, "rope_scaling": LINEAR}),
    (KINDS, {"global_rope_theta": 50.0, "local_rope_theta": 30.0, "rope_scaling": LINEAR}),
    (KINDS, {"rope_parameters": {"sliding_attention": LINEAR}, "rope_theta": 50.0}),
    (KINDS, {"rope_parameters": {"full_attention": SCALED}}),
    (KINDS, {"rope_parameters": NESTED, "global_rope_theta": 50.0, "rope_theta": 70.0}),
]


@pytest.mark.parametrize(
    ("kind", "keys"), [(kind, keys) for kinds, keys in TURNED for kind in kinds]
)
def test_positions_turn_as_theirs(kind, keys):
    """Whichever of the old and the new keys there are."""
    base = base_of(next(case for case in CASES if base_of(case)["model_type"] == kind))
    values = deepcopy({k: v for k, v in base.items() if not k.startswith("rope_")} | keys)
    found = configure(values, Options())
    config = CONFIG_MAPPING[kind].from_dict(deepcopy(values))
    package = CONFIG_MAPPING[kind].__module__.rpartition(".")[0]
    modeling = import_module(f"{package}.modeling_{package.rpartition('.')[2]}")
    prefix = type(config).__name__.removesuffix("Config").removesuffix("Text")
    theirs = dict(getattr(modeling, f"{prefix}RotaryEmbedding")(config).named_buffers())
    for rotary, layers in zip(found.rotaries, ("full", "sliding"), strict=False):
        name = "inv_freq" if "inv_freq" in theirs else f"{layers}_attention_inv_freq"
        np.testing.assert_allclose(rotary.frequencies(), theirs[name], rtol=1e-6)


def changed_reference(case, head, folder) -> Reference:
    """A random model of transformers with all keys changed, saved in a folder."""
    base = base_of(case)
    values = {**base, **others(case)}
    config = CONFIG_MAPPING[base["model_type"]].from_dict(values)
    config.num_labels = LABELS
    name = configure(values, Options()).heads[head].architecture
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.squeeze().ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return Reference(head, model)


@pytest.mark.parametrize(
    ("case", "head"),
    [*((case, natural(case)) for case in CASES), *((case, "classification") for case in POOLED)],
)
def test_every_key_changed_equals_transformers(case, head, one_device, tmp_path):
    """Tied words are not, and the other way round; the folder we write is theirs."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    reference = changed_reference(case, head, theirs)
    config = read_config(theirs)
    model = build(config, head)
    params, absent = pretrained.load(theirs, model, one_device, jax.random.key(0))
    assert not absent
    run = applied(model)
    for batch in reference.layouts():
        wanted = said(reference, batch)
        assert difference(batch, run(params, batch), wanted) < 1e-4
    tensors, wanted = mapping.to_tensors(params, model.names, prefix=True), Weights(theirs)
    assert set(tensors) == set(wanted)
    unused = {"model.shared.weight"} if case in ("bart", "mbart", "marian") else set()
    unused |= {"cls.predictions.bias", "lm_head.bias", "predictions.bias"}
    for name in set(tensors) - unused:
        np.testing.assert_array_equal(tensors[name], np.asarray(wanted[name]), err_msg=name)
    mapping.write_folder(ours, theirs, config, tensors)
    loaded, info = type(reference.model).from_pretrained(ours, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again = said(Reference(head, loaded.eval()), batch)
    assert difference(batch, again, said(reference, batch)) < 1e-6
