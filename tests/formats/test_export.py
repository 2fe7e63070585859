"""What is exported is whole, and as the reference libraries write and read it."""

import errno
import json
import math
import os
import resource
import shutil
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from sentence_transformers import SentenceTransformer

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats import export
from ftjax.formats.export import whole, write_export
from ftjax.formats.folder import (
    Weights,
    hub_name,
    load_tokenizer,
    locate,
    read_config,
    stored_dtype,
)
from ftjax.formats.gguf.tokenizer import end_tokens
from ftjax.formats.sentence_transformers.modules import pooling_of
from ftjax.parallel.mesh import make_mesh, param_shardings
from ftjax.tasks.contrastive import Contrastive
from tests.conftest import build, here, perturbed
from tests.covering import product
from tests.formats.published import TEXTS, write
from tests.formats.test_gguf_tokenizer import write_vocabulary
from tests.models.cases import CASES
from tests.models.random_models import kind_of, natural, quick
from tests.models.reference import Reference
from tests.parallel import processes

# What says by what a file was written, or where it lay.
ABOUT = ("transformers_version", "_name_or_path", "architectures", "dtype", "_from_model_config")


def start(folder, mesh, head, method="full", **settings):
    """A folder's model and moved parameters."""
    wanted = {"head": head, "labels": 2} if head == "classification" else {"head": head}
    model = build_tuned(
        read_config(folder),
        methods.create({"name": method}),
        {"dtype": "float32", **settings},
        wanted,
    )
    params, _ = pretrained.load(folder, model, mesh, jax.random.key(0))
    return model, perturbed(params, model)


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def dtypes(folder: Path) -> dict[str, str]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as handle:
            found |= {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


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


def test_of_exports_at_once_one_is_whole(tiny, one_device, tmp_path, monkeypatch):
    model = build(tiny, {"name": "full"})
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    killed, out = tmp_path / ".out.0123.partial", tmp_path / "out"
    killed.mkdir()
    (killed / "config.json").touch()
    (tmp_path / "empty").mkdir()
    out.symlink_to(tmp_path / "empty")  # an empty folder may be there
    export_hf = export.export_hf

    def slow(output, exported):
        """Another export of the same folder begins and ends while this one writes."""
        export_hf(output, exported)
        monkeypatch.setattr(export, "export_hf", export_hf)
        write_export("hf", out, tiny, model, params, ("a", "b"))

    monkeypatch.setattr(export, "export_hf", slow)
    with pytest.raises(UserError, match="another export was first"):
        write_export("hf", out, tiny, model, perturbed(params, model), ("no", "yes"))
    assert read_config(out)["id2label"] == {"0": "a", "1": "b"}
    path = "pooler/kernel"
    written = Weights(out)["bert.pooler.dense.weight"]
    np.testing.assert_array_equal(np.asarray(written), np.asarray(params[path]).T)
    killed.rename(tmp_path / ".empty.0123.partial") if killed.exists() else None
    shutil.rmtree(tmp_path / "empty")
    write_export("hf", out, tiny, model, params, ("a", "b"))
    assert not [*tmp_path.glob(".empty*")]  # of those that were killed


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


@pytest.mark.parametrize("method", product([("full",), ("lora",), ("qlora",)], [("qlora",)]))
def test_the_host_holds_a_tensor_at_a_time(method, one_device, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 16}
    config = CASES["llama"]().to_dict() | sizes | {"num_key_value_heads": 4, "head_dim": 64}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    head = {"head": "causal_lm"}
    chosen = methods.create({"name": method})
    model = build_tuned(config, chosen, {"segments": "scan"}, head)
    shardings = param_shardings(model.shapes, model.axes, one_device)
    params = model.init(jax.random.key(0), list(model.shapes), shardings)
    params = {p: model.method.stored(model.base, p, x) for p, x in params.items()}
    largest = 4 * 256 * 1024
    whole = sum(4 * math.prod(leaf.shape) for leaf in model.base.shapes.values())
    tracemalloc.start()
    write_export(
        "hf", tmp_path / "out", tmp_path / "base", model, params, problem=None, dtype="float32"
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert whole > 50 * largest
    assert peak < 12 * largest, peak / largest  # a layer's module, merged and cast


def test_a_model_on_many_devices_is_written_as_on_one(one_device, tmp_path):
    base = tmp_path / "base"
    Reference.make("llama", "causal_lm", base)
    model, params = start(base, one_device, "causal_lm", "lora", segments="scan")
    write_export("hf", tmp_path / "one", base, model, params, problem=None)
    mesh = make_mesh(2, 2, 2)
    shardings = param_shardings(model.shapes, model.axes, mesh)
    spread = {path: jax.device_put(leaf, shardings[path]) for path, leaf in params.items()}
    assert any(not leaf.is_fully_replicated for leaf in spread.values())
    for kind in ("hf", "peft"):
        write_export(kind, tmp_path / f"{kind}-one", base, model, params, problem=None)
        write_export(kind, tmp_path / f"{kind}-many", base, model, spread, problem=None)
        assert contents(tmp_path / f"{kind}-one") == contents(tmp_path / f"{kind}-many")


def test_a_folder_that_finds_no_room_is_named(tmp_path):
    def write(folder):
        folder.mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="out: could not be written: .*No space left"):
        whole(tmp_path / "out", write)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "pooling"), [("peft", "cls"), ("adapterhub", "cls"), ("hf", "mean")]
)
def test_files_that_may_not_grow_are_a_message(kind, pooling, tiny, one_device, tmp_path):
    """Also those that safetensors writes, whose error is its own."""
    head = {"head": "classification", "labels": 2, "pooling": pooling}
    model = build(tiny, {"name": "lora", "rank": 8}, head=head)
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
    try:
        with pytest.raises(UserError, match=f"{kind}: could not be written: .*File too large"):
            write_export(kind, tmp_path / kind, tiny, model, params, ("a", "b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


def test_two_processes_write_what_one_writes(config_file, tiny, tmp_path):
    base = tmp_path / "models--org--tiny" / "snapshots" / "0123abc"  # as in the hub's cache
    shutil.copytree(tiny, base)
    work, options = tmp_path / "work", ["--config.mesh.data=2", "--config.mesh.fsdp=4"]
    options += ["--config.train.steps=2", "--config.data.buckets=1", f"--config.model.path={base}"]
    here("train", "--config", f"{config_file}:lora", "--workdir", work, *options)
    here("export", "--workdir", work, "--format", "peft", "--output", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    asked = ["export", "--workdir", work, "--format", "hf", "--max-shard-size", "20KB"]
    here(*asked, "--output", tmp_path / "one")
    processes.ended(processes.start([*asked, "--output", tmp_path / "two"], 2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len([*(tmp_path / "two").glob("*.safetensors")]) > 1


@pytest.mark.parametrize(
    ("case", "how"), [("bert", "mean"), ("bert", "cls"), ("distilbert", "mean"), ("xlnet", "cls")]
)
def test_embeddings_are_sentence_transformers(case, how, one_device, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    torch.manual_seed(0)
    config = CASES[case]()
    config.vocab_size = 150
    transformers.AutoModel.from_config(config).save_pretrained(base)
    write(case, base)
    (base / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "query: "}, "default_prompt_name": "query"})
    )
    task = Contrastive(pooling=how)
    method = {"name": "lora", "rank": 2}
    if case == "xlnet":  # whose attention has no modules that PEFT adapts
        method["targets"] = ("ffn.up", "ffn.down")
    model = build(base, method, head=task.head((), base))
    params, _ = pretrained.load(base, model, one_device, jax.random.key(0))
    params = perturbed(params, model)
    write_export("hf", out, base, model, params, problem=None)
    assert pooling_of(out) == how
    theirs = SentenceTransformer(str(out), device="cpu").encode(TEXTS)
    tokens = load_tokenizer(base)(TEXTS, padding=True, padding_side="right")
    batch = {name: np.array(tokens[name])[:, None] for name in ("input_ids", "attention_mask")}
    apply = quick(model.apply)
    ours = task.outputs(lambda flat: apply(params, flat), batch)[:, 0]
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    write_export("peft", tmp_path / "adapter", base, model, params, problem=None)
    adapted = peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    mask = batch["attention_mask"][:, 0]
    with torch.no_grad():
        ids, real = torch.tensor(batch["input_ids"][:, 0]), torch.tensor(mask)
        hidden = adapted(input_ids=ids, attention_mask=real).last_hidden_state.numpy()
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    last = hidden[np.arange(len(hidden)), mask.sum(1) - 1]
    vector = mean if how == "mean" else last if case == "xlnet" else hidden[:, 0]
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, vector, atol=1e-5)


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
