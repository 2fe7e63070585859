"""What is exported is whole, and as the reference libraries write and read it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from ftjax import pretrained
from ftjax.errors import UserError
from ftjax.formats.export import write_export
from ftjax.formats.folder import (
    Weights,
    hub_name,
    load_tokenizer,
    locate,
    read_config,
    stored_dtype,
)
from ftjax.formats.gguf.tokenizer import end_tokens
from tests.conftest import build
from tests.covering import product
from tests.formats.folders import files, start
from tests.formats.published import TEXTS, write
from tests.formats.test_gguf_tokenizer import write_vocabulary
from tests.models.cases import CASES
from tests.models.random_models import kind_of, natural, quick
from tests.models.reference import Reference

# What says by what a file was written, or where it lay.
ABOUT = ("transformers_version", "_name_or_path", "architectures", "dtype", "_from_model_config")


def dtypes(folder: Path) -> dict[str, str]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as handle:
            found |= {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    return found


# Whose tokenizers, or files beside the weights, are published as another's; by --all.
ALIKE = {"distilbert", "electra", "deberta-v2", "mistral", "mixtral", "phi3", "gemma2", "gemma3"}
ALIKE |= {"gpt_neo", "t5-v1.1", "qwen2"}
EACH = [(case,) for case in CASES]


@pytest.mark.parametrize("case", product(EACH, [each for each in EACH if each[0] not in ALIKE]))
def test_the_folder_has_what_transformers_would_write(case, one_device, tmp_path):
    head, base = natural(case), tmp_path / "base"
    reference = Reference.make(case, head, base)
    write(case, base)
    if (base / "generation_config.json").exists() and case in ("llama", "t5"):
        chosen = transformers.GenerationConfig.from_pretrained(base)
        chosen.eos_token_id, chosen.max_new_tokens = [3, 9], 7
        chosen.save_pretrained(base)
    theirs = type(reference.model).from_pretrained(base)
    theirs.save_pretrained(tmp_path / "theirs")
    load_tokenizer(base).save_pretrained(tmp_path / "theirs")
    model, params = start(base, one_device, head)
    write_export("hf", tmp_path / "out", base, model, params, problem=None)
    assert files(tmp_path / "theirs") <= files(tmp_path / "out")
    for auto in (transformers.AutoConfig, transformers.GenerationConfig):
        if auto is transformers.GenerationConfig and not theirs.can_generate():
            assert not (tmp_path / "out" / "generation_config.json").exists()
            continue
        ours, wanted = (
            auto.from_pretrained(tmp_path / side).to_dict() for side in ("out", "theirs")
        )
        for key in {*ours, *wanted} - {*ABOUT}:
            assert ours.get(key) == wanted.get(key), key
    _, info = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS)["input_ids"]
    assert found == load_tokenizer(base)(TEXTS)["input_ids"]


@pytest.mark.parametrize("case", ["gpt2", "llama", "qwen2"])
def test_a_decoders_classifier_takes_batches(case, one_device, tmp_path):
    base = tmp_path / "base"
    config = CASES[case]()
    config.pad_token_id = None
    config.vocab_size = 400
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(base)
    write(case, base)
    assert json.loads((base / "config.json").read_text()).get("pad_token_id") is None
    model, params = start(base, one_device, "classification")
    write_export("hf", tmp_path / "out", base, model, params, ("no", "yes"))
    auto = transformers.AutoModelForSequenceClassification
    theirs = auto.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**tokens).logits.numpy()
    assert theirs.config.pad_token_id == tokenizer.pad_token_id is not None
    batch = {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(
        quick(model.apply)(params, batch), wanted, atol=1e-4 * np.abs(wanted).max()
    )


@pytest.mark.parametrize(
    ("stored", "asked", "wanted"),
    [
        ("bfloat16", None, "BF16"),
        ("float16", None, "F16"),
        ("float32", None, "F32"),
        ("bfloat16", "float32", "F32"),
        ("float32", "float16", "F16"),
    ],
)
def test_numbers_are_of_the_bases_type_or_of_that_asked_for(
    stored, asked, wanted, one_device, tmp_path
):
    base, out = tmp_path / "base", tmp_path / "out"
    torch.manual_seed(0)
    kind = getattr(torch, stored)
    auto = transformers.AutoModelForCausalLM
    auto.from_config(CASES["llama"](), dtype=kind).save_pretrained(base)
    model, params = start(base, one_device, "causal_lm", "lora")
    write_export("hf", out, base, model, params, problem=None, dtype=asked, shard_bytes=9_000)
    assert set(dtypes(out).values()) == {wanted}
    assert len([*out.glob("*.safetensors")]) > 3
    dtype = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[wanted]
    assert read_config(out)["dtype"] == stored_dtype(out) == dtype
    theirs = auto.from_pretrained(out, dtype=torch.float32)
    ids = np.arange(4, 16).reshape(2, 6)
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
    ours = quick(model.apply)(params, {"input_ids": ids})
    close = 1e-5 if wanted == "F32" else 0.02
    np.testing.assert_allclose(ours, logits, atol=close * np.abs(logits).max())


def test_numbers_that_do_not_fit_are_refused_and_nothing_is_left(one_device, tmp_path):
    base = tmp_path / "base"
    Reference.make("llama", "causal_lm", base)
    model, params = start(base, one_device, "causal_lm")
    path = "words/embedding" if "words/embedding" in params else "embeddings/word/embedding"
    params[path] = params[path].at[0, 0].set(1e5)
    with pytest.raises(UserError, match=r"tensor 'model.embed_tokens.weight' .* too large"):
        write_export("hf", tmp_path / "out", base, model, params, problem=None, dtype="float16")
    assert [*tmp_path.iterdir()] == [base]
    with pytest.raises(UserError, match="--dtype is of --format hf"):
        write_export("peft", tmp_path / "out", base, model, params, dtype="float16")
    with pytest.raises(UserError, match="gs:/bucket/out must be a folder of this machine"):
        write_export("hf", Path("gs://bucket/out"), base, model, params, problem=None)


@pytest.mark.parametrize(("method", "segments"), [("lora", "scan"), ("head", "unrolled")])
def test_what_a_run_only_held_rounded_leaves_as_it_came(method, segments, one_device, tmp_path):
    base = tmp_path / "base"
    Reference.make("llama", "causal_lm", base)
    kind = {"dtype": "bfloat16", "segments": segments}
    model, params = start(base, one_device, "causal_lm", method, **kind)
    write_export("hf", tmp_path / "out", base, model, params, problem=None)
    changed = [path for path in params if path.endswith(("lora_a", "lora_b"))]
    changed += [path for path in model.base.shapes if model.partition.is_trainable(path)]
    paths = {path.rpartition("/")[0] for path in changed}
    moved = {name for path in paths for name, _ in model.names.stored(f"{path}/kernel")}
    theirs, ours = Weights(base), Weights(tmp_path / "out")
    assert moved and len(moved) < len(theirs)
    for name, tensor in theirs.items():
        same = np.array_equal(tensor, ours[name])
        assert same == (name.removeprefix("model.") not in moved), name


def test_an_adapter_names_its_base_as_others_find_it(tiny, one_device, tmp_path):
    cached = tmp_path / "hub" / "models--org--some-model" / "snapshots" / "0123abc"
    names = {
        hub_name("org/some-model", cached): "org/some-model",
        hub_name(str(cached), cached): "org/some-model",
        hub_name("minilm", locate("minilm")): "sentence-transformers/all-MiniLM-L6-v2",
        hub_name("smollm2", Path("any.gguf")): "HuggingFaceTB/SmolLM2-135M-Instruct",
        hub_name(str(tiny), tiny): str(tiny),
    }
    assert all(found == wanted for found, wanted in names.items())
    model = build(tiny, {"name": "lora"})
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    for kind, key in (("peft", "base_model_name_or_path"), ("adapterhub", "model_name")):
        write_export(kind, tmp_path / kind, tiny, model, params, ("a", "b"), base="org/some-model")
        config = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert config[key] == "org/some-model"


def test_a_gguf_model_becomes_a_whole_folder(one_device, tmp_path):
    file = write_vocabulary(tmp_path / "model.gguf", "smollm")
    model, params = start(file, one_device, "causal_lm")
    write_export("hf", tmp_path / "out", file, model, params, problem=None)
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    wanted |= {"README.md"}
    assert wanted | {"tokenizer_config.json", "chat_template.jinja"} == files(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ends = theirs.generation_config.eos_token_id
    assert ends == end_tokens(file) and len(ends) == 2  # of a turn, and of a text
    assert tokenizer.eos_token_id == ends[0]
    assert tokenizer(TEXTS)["input_ids"] == load_tokenizer(file)(TEXTS)["input_ids"]


def test_weights_are_what_safetensors_reads(one_device, tmp_path):
    """Written here a tensor at a time, read by the library."""
    Reference.make("gpt2", "causal_lm", tmp_path / "base")
    model, params = start(tmp_path / "base", one_device, "causal_lm")
    write_export("hf", tmp_path / "out", tmp_path / "base", model, params, problem=None)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").state_dict()
    stored = Weights(tmp_path / "out")
    assert kind_of("gpt2") == "decoder" and len(stored) > 30
    for name, tensor in stored.items():
        np.testing.assert_array_equal(tensor, theirs[name].numpy(), err_msg=name)
