"""PEFT folders that hold parameters of the base: loaded equal to `peft`, or refused."""

import json
from itertools import product

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.folder import read_config
from ftjax.formats.hf.vocabulary import with_words
from ftjax.formats.peft import folder as files
from tests.formats.bounds import bounded
from tests.models.cases import BART
from tests.models.random_models import quick

IDS = np.random.default_rng(0).integers(4, 60, (3, 7))
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 32}
BASES = {
    "tied": (
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
        transformers.LlamaForCausalLM,
    ),
    "untied": (
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=False, attention_bias=True),
        transformers.LlamaForCausalLM,
    ),
    "bert": (
        transformers.BertConfig(**SIZES, pad_token_id=0),
        transformers.BertForSequenceClassification,
    ),
    "masked": (transformers.BertConfig(**SIZES, pad_token_id=0), transformers.BertForMaskedLM),
    "gpt2": (
        transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4),
        transformers.GPT2LMHeadModel,
    ),
    "bart": (
        transformers.BartConfig(**BART, tie_word_embeddings=False),
        transformers.BartForConditionalGeneration,
    ),
}
TASKS = {"bert": "SEQ_CLS", "bart": "SEQ_2_SEQ_LM", "masked": None}
Q = {"target_modules": ["q_proj"]}
BDLORA = peft.tuners.lora.config.BdLoraConfig(target_modules_bd_b=["q_proj"], nblocks=1)
EQUAL = {  # base, LoraConfig, keywords of save_pretrained
    "embeddings and head": ("untied", {**Q, "modules_to_save": ["embed_tokens", "lm_head"]}, {}),
    "embeddings": ("untied", {**Q, "modules_to_save": ["embed_tokens"]}, {}),
    "norms": ("tied", {**Q, "modules_to_save": ["input_layernorm", "norm"]}, {}),
    "a projection": ("untied", {**Q, "modules_to_save": ["v_proj"]}, {}),
    "projections stored as one": (
        "gpt2",
        {"target_modules": ["c_fc"], "modules_to_save": ["c_attn"], "fan_in_fan_out": True},
        {},
    ),
    "tied together": (
        "tied",
        {**Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {},
    ),
    "tables asked for": ("tied", Q, {"save_embedding_layers": True}),
    "tables of each": ("untied", Q, {"save_embedding_layers": True}),
    "all biases": ("untied", {**Q, "bias": "all"}, {}),
    "LoRA's biases": ("bert", {"target_modules": ["query", "value"], "bias": "lora_only"}, {}),
    "all biases, and a head that is saved": (
        "bert",
        {"target_modules": ["query", "value"], "bias": "all"},
        {},
    ),
    "tokens, tied": ("tied", {**Q, "trainable_token_indices": [5, 9, 30]}, {}),
    "tokens": ("untied", {**Q, "trainable_token_indices": {"embed_tokens": [5, 9, 30]}}, {}),
    "tokens of the head": (
        "untied",
        {**Q, "trainable_token_indices": {"lm_head": [2, 63], "embed_tokens": [5, 9]}},
        {},
    ),
    "the head adapted": ("untied", {"target_modules": ["q_proj", "lm_head"]}, {}),
    "the head adapted by magnitudes": (
        "untied",
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True, "use_rslora": True},
        {},
    ),
    "words adapted": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}, {}),
    "words of both sides adapted": (
        "bart",
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        {},
    ),
    "words masked, ranks above one side of a projection": (
        "masked",
        {
            "target_modules": ["query", "intermediate.dense"],
            "rank_pattern": {"intermediate.dense": 40},
        },
        {},
    ),
    "words of a decoder adapted": ("bart", {"target_modules": ["decoder.embed_tokens"]}, {}),
    "a decoder's words": ("bart", {**Q, "modules_to_save": ["decoder.embed_tokens"]}, {}),
}
HEADS = {"bert": {"head": "classification", "labels": 2}, "bart": {"head": "seq2seq_lm"}}
HEADS["masked"] = {"head": "masked_lm"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Name → the folder of a random model."""
    made = {}

    def folder(name):
        if name not in made:
            torch.manual_seed(0)
            config, cls = BASES[name]
            model, made[name] = cls(config), tmp_path_factory.mktemp(name)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor += 0.1 * torch.randn_like(tensor)
            model.save_pretrained(made[name])
        return made[name]

    return folder


def adapted(folder, name, settings, words=0):
    """peft's model, all that trains moved."""
    cls = BASES[name][1]
    task = TASKS.get(name, "CAUSAL_LM")
    model = cls.from_pretrained(folder).eval()
    if words:
        model.resize_token_embeddings(words)
    torch.manual_seed(1)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=3, **settings)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor += 0.1 * torch.randn_like(tensor)
    return model


def loaded(base, name, folder, device):
    """Ours of an adapter's folder, and what it is loaded over."""
    head = HEADS.get(name, {"head": "causal_lm"})
    config = json.loads((base / "config.json").read_text())
    model = build_tuned(config, methods.create(files.read(folder)), {}, head)
    params, _ = pretrained.load(base, model, device, jax.random.key(0))
    found, absent = files.load_into(model, params, folder)
    assert name == "masked" or set(absent) <= {"lm_head/kernel", "logits/bias"}  # the base's own
    return model, found, params


def logits_of(theirs, ids=IDS):
    with torch.no_grad():
        return theirs(input_ids=torch.tensor(ids)).logits.numpy()


def near(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("case", EQUAL)
def test_loaded_as_by_peft(case, base, one_device, tmp_path):
    name, settings, keywords = EQUAL[case]
    theirs = adapted(base(name), name, settings)
    theirs.save_pretrained(tmp_path, **keywords)
    again = BASES[name][1].from_pretrained(base(name))
    wanted = logits_of(peft.PeftModel.from_pretrained(again, tmp_path).eval())
    model, params, _ = loaded(base(name), name, tmp_path, one_device)
    near(quick(model.apply)(params, {"input_ids": IDS}), wanted)
    if case.startswith(("the head", "words")):
        files.write(tmp_path / "ours", base(name), model, params)
        again = BASES[name][1].from_pretrained(base(name))
        near(logits_of(peft.PeftModel.from_pretrained(again, tmp_path / "ours").eval()), wanted)
        return
    others = {key for key in load_file(tmp_path / files.WEIGHTS) if "lora_" not in key}
    assert others


def test_names_of_wrappers_and_of_the_adapter_are_taken_away(base, one_device, tmp_path):
    """As accelerators save the state of a model that they wrapped."""
    theirs = adapted(base("untied"), "untied", {**Q, "modules_to_save": ["norm"], "use_dora": True})
    theirs.save_pretrained(tmp_path)
    state = {
        f"module._orig_mod.{key}": tensor.contiguous()
        for key, tensor in theirs.state_dict().items()
        if "lora_" in key or "modules_to_save" in key
    }
    assert any(key.endswith("lora_A.default.weight") for key in state)
    save_file(state, tmp_path / files.WEIGHTS)
    model, params, _ = loaded(base("untied"), "untied", tmp_path, one_device)
    near(quick(model.apply)(params, {"input_ids": IDS}), logits_of(theirs))
    key = next(key for key in state if key.endswith("lora_A.default.weight"))
    twice = {**state, key.replace(".default", ""): state[key] + 1}
    save_file({k: x.clone() for k, x in twice.items()}, tmp_path / files.WEIGHTS)
    with pytest.raises(UserError, match="the same tensor, and differ"):
        files.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "words", "message"),
    [
        ("tied", {**Q, "modules_to_save": ["embed_tokens"]}, 0, "one table for both.*merge"),
        ("tied", {**Q, "modules_to_save": ["lm_head"]}, 0, "one table for both.*merge"),
        ("untied", Q, 70, r"shape \(70, 32\), .*resize_token_embeddings\(70\)"),
        ("tied", {"target_modules": ["q_proj", "lm_head"]}, 0, "no projection 'lm_head'"),
        ("untied", {**Q, "layer_replication": [(0, 2), (1, 2)]}, 0, "layer_replication.*merge"),
        ("untied", {**Q, "use_bdlora": BDLORA}, 0, "use_bdlora.*merge_and_unload"),
        ("untied", {**Q, "kasa_config": peft.tuners.lora.config.KasaConfig()}, 0, "kasa_config"),
        ("untied", {**Q, "lora_bias": True}, 0, "lora_bias.*merge_and_unload"),
    ],
)
def test_what_the_model_cannot_have_is_refused(
    name, settings, words, message, base, one_device, tmp_path
):
    adapted(base(name), name, settings, words).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        loaded(base(name), name, tmp_path, one_device)


def test_an_adapter_of_more_words_loads_over_a_table_made_larger(base, one_device, tmp_path):
    """As the refusal of a smaller table says."""
    theirs = adapted(base("untied"), "untied", Q, words=70)
    theirs.save_pretrained(tmp_path)
    (folder := tmp_path / "base").mkdir()
    for file in base("untied").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    vocabulary = {"".join(pair): i for i, pair in enumerate(product("abcdefghi", repeat=2))}
    vocabulary = {word: i for word, i in vocabulary.items() if i < 70}
    Tokenizer(WordLevel(vocabulary, unk_token="aa")).save(str(folder / "tokenizer.json"))
    config = with_words(folder, read_config(folder), resize=True)
    model = build_tuned(config, methods.create(files.read(tmp_path)), {}, {"head": "causal_lm"})
    params, _ = pretrained.load(folder, model, one_device, jax.random.key(0), resize=True)
    params, _ = files.load_into(model, params, tmp_path)
    near(quick(model.apply)(params, {"input_ids": IDS + 8}), logits_of(theirs, IDS + 8))


def test_a_head_of_other_labels_than_the_bases_is_written(base, one_device, tmp_path):
    config = read_config(base("bert"))
    model = build_tuned(
        config, methods.create({"name": "lora"}), {}, {"head": "classification", "labels": 5}
    )
    params, _ = pretrained.load(base("bert"), model, one_device, jax.random.key(0), new_head=True)
    files.write(tmp_path, base("bert"), model, params)
    assert load_file(tmp_path / files.WEIGHTS)["base_model.model.classifier.bias"].shape == (5,)


ENDLESS = r"(\w|\.|[a-z])*(XY|YX)"  # there are three ways to take each letter


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_alpha": "8"}, "lora_alpha='8' has the wrong type: a number"),
        ({"r": None}, "r=None has the wrong type: a whole number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan must be finite"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern=.* must be of modules and numbers"),
        ({"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern=.* must be of modules and numbers"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern: '\\(' is not a regular"),
        (
            {"rank_pattern": {ENDLESS: 2}},
            r"json: the pattern .* takes more than 1 s at 'model.layers",
        ),
        ({"modules_to_save": [1]}, "modules_to_save=.* texts expected"),
        ({"of_tomorrow": {"a": 1}}, "of_tomorrow=.* is not implemented"),
        (
            {"peft_type": "VERA", "save_projection": False},
            "save_projection=False is not implemented for VERA: merge",
        ),
        ({"peft_type": "OFT"}, "r=2 is not implemented for OFT: merge"),
    ],
)
def test_damaged_settings_are_named(change, message, tmp_path):
    config = {**peft.LoraConfig(r=2).to_dict(), "peft_type": "LORA", **change}
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({key: torch.ones(2, 4)}, tmp_path / files.WEIGHTS)
    with bounded(), pytest.raises(UserError, match=message):
        files.read(tmp_path)


def test_what_would_be_lost_is_not_written(base, one_device, tmp_path):
    """A PEFT folder of an adapter that began from one with norms."""
    folder = base("untied")
    theirs = adapted(folder, "untied", {**Q, "modules_to_save": ["norm"]})
    theirs.save_pretrained(tmp_path / "theirs")
    model, params, before = loaded(folder, "untied", tmp_path / "theirs", one_device)
    with pytest.raises(UserError, match="norm/scale' of the base is not what"):
        files.write(tmp_path / "ours", folder, model, params)
    assert not (tmp_path / "ours").exists()
    same = {path: before[path] if path in model.base.shapes else x for path, x in params.items()}
    files.write(tmp_path / "ours", folder, model, same)
