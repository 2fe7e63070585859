"""Hugging Face and PEFT folders, read and written, checked against the libraries themselves."""

import json
import shutil

import jax
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.commands.entry import main
from ftjax.errors import UserError
from ftjax.formats.export import write_export
from ftjax.formats.folder import Weights, locate, read_config
from ftjax.formats.hf import mapping
from ftjax.formats.sentence_transformers.modules import pooling_of
from tests.conftest import HEAD, build, make_batch, perturbed
from tests.models.random_models import quick
from tests.models.reference import Reference
from tests.models.test_bert import torch_inputs

NAMES = ("negative", "positive")


def adapted(folder, mesh, method, head=HEAD, segments="unrolled"):
    model = build(folder, method, {"segments": segments}, head)
    params, absent = pretrained.load(folder, model, mesh, jax.random.key(0))
    return model, perturbed(params, model), absent


@pytest.mark.parametrize("segments", ["unrolled", "scan"])
@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "lora", "rank": 4}])
def test_exported_folder_is_transformers_classifier(tiny, one_device, tmp_path, method, segments):
    model, params, absent = adapted(tiny, one_device, method, segments=segments)
    assert sorted(absent) == ["classifier/bias", "classifier/kernel"]
    out = tmp_path / "out"
    write_export("hf", out, tiny, model, params, NAMES)
    auto = transformers.AutoModelForSequenceClassification
    theirs, info = auto.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = make_batch()
    with torch.no_grad():
        logits = theirs.eval()(**torch_inputs(batch)).logits.numpy()
    np.testing.assert_allclose(quick(model.apply)(params, batch), logits, atol=1e-4)
    assert theirs.config.id2label == {0: "negative", 1: "positive"}
    assert transformers.AutoTokenizer.from_pretrained(out)("good film")["input_ids"][0] == 2
    # And back: the head is now in the folder.
    again = build(out, {"name": "full"})
    back, absent = pretrained.load(out, again, one_device, jax.random.key(9))
    assert not absent
    np.testing.assert_allclose(again.apply(back, batch), logits, atol=1e-5)
    _, absent = pretrained.load(out, again, one_device, jax.random.key(9), new_head=True)
    assert absent


def test_mean_pooling_exports_as_sentence_transformers(one_device, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = locate("minilm")
    assert pooling_of(folder) == "mean"
    head = {**HEAD, "pooling": "mean"}
    model, params, _ = adapted(folder, one_device, {"name": "lora"}, head)
    out = tmp_path / "out"
    write_export("hf", out, folder, model, params, NAMES)
    _, info = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    texts = ["a good film", "the plot was thin, and the music loud"]
    theirs = SentenceTransformer(str(out), device="cpu").encode(texts)
    tokens = transformers.AutoTokenizer.from_pretrained(out)(texts, padding=True)
    batch = {name: np.array(tokens[name]) for name in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(quick(model.apply)(params, batch), theirs, atol=1e-4)


def test_peft_loads_the_adapter_with_its_head(tiny, one_device, tmp_path):
    method = {"name": "lora", "rank": 4, "alpha": 12.0, "targets": ("query", "ffn.up")}
    model, params, _ = adapted(tiny, one_device, method, segments="scan")
    out = tmp_path / "adapter"
    write_export("peft", out, tiny, model, params, NAMES)
    auto = transformers.AutoModelForSequenceClassification
    base = auto.from_pretrained(tiny, num_labels=2)
    theirs = peft.PeftModel.from_pretrained(base, out).eval()
    batch = make_batch()
    with torch.no_grad():
        logits = theirs(**torch_inputs(batch)).logits.numpy()
    np.testing.assert_allclose(quick(model.apply)(params, batch), logits, atol=1e-4)
    keys = set(load_file(out / "adapter_model.safetensors"))
    peft.PeftModel.from_pretrained(base, out).save_pretrained(tmp_path / "theirs")
    assert keys == set(load_file(tmp_path / "theirs" / "adapter_model.safetensors"))


def test_peft_adapter_of_a_mean_pooling_model(tiny, one_device, tmp_path):
    head = {**HEAD, "pooling": "mean"}
    model, params, _ = adapted(tiny, one_device, {"name": "lora", "rank": 2}, head)
    out = tmp_path / "adapter"
    write_export("peft", out, tiny, model, params, NAMES)
    base = transformers.AutoModel.from_pretrained(tiny)
    theirs = peft.PeftModel.from_pretrained(base, out).eval()
    batch = make_batch()
    with torch.no_grad():
        hidden = theirs(**torch_inputs(batch)).last_hidden_state.numpy()
    mask = batch["attention_mask"][..., None]
    dense = load_file(out / "2_Dense" / "model.safetensors")
    mean = (hidden * mask).sum(1) / mask.sum(1)
    logits = mean @ dense["linear.weight"].T + dense["linear.bias"]
    np.testing.assert_allclose(quick(model.apply)(params, batch), logits, atol=1e-4)


def test_what_cannot_be_exported_is_said(tiny, one_device, tmp_path):
    model, params, _ = adapted(tiny, one_device, {"name": "houlsby"})
    for kind, message in (("hf", "cannot be merged"), ("peft", "PEFT has no form of houlsby")):
        with pytest.raises(UserError, match=message):
            write_export(kind, tmp_path / kind, tiny, model, params, NAMES)
        assert not (tmp_path / kind).exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        write_export("hf", tmp_path / "full", tiny, model, params, NAMES)


def damaged(tiny, tmp_path, change):
    """A copy of the tiny folder whose tensors are changed."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY), f"lack tensor '{QUERY}'"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "unexpected tensor 'extra'"),
        (lambda t: t.update({QUERY: np.zeros((3, 32), np.float32)}), r"shape \(32, 3\).*\(32, 32\)"),
        (
            lambda t: t.update({"classifier.weight": np.zeros((5, 32), np.float32),
                                "classifier.bias": np.zeros(5, np.float32)}),
            "new_head",
        ),
    ],
)  # fmt: skip
def test_bad_tensors_are_named(tiny, one_device, tmp_path, change, message):
    folder = damaged(tiny, tmp_path, change)
    with pytest.raises(UserError, match=message):
        pretrained.load(folder, build(folder, {"name": "full"}), one_device, jax.random.key(0))


def test_pretraining_heads_are_left_out(tiny, one_device, tmp_path):
    def change(tensors):
        tensors["cls.predictions.bias"] = np.zeros(4, np.float32)
        tensors["embeddings.position_ids"] = np.zeros((1, 64), np.int64)
        for name in [name for name in tensors if "LayerNorm" in name]:  # TensorFlow's names
            gamma = name.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[gamma] = tensors.pop(name)

    folder = damaged(tiny, tmp_path, change)
    model, batch = build(tiny, {"name": "full"}), make_batch()
    found, _ = pretrained.load(folder, model, one_device, jax.random.key(0))
    wanted, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    apply = quick(model.apply)
    np.testing.assert_array_equal(apply(found, batch), apply(wanted, batch))


@pytest.mark.parametrize("cut", [4, 2000, -100])
def test_a_truncated_file_is_named(tiny, one_device, tmp_path, cut):
    folder = tmp_path / "cut"
    shutil.copytree(tiny, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"model\.safetensors is corrupt or truncated"):
        pretrained.load(folder, build(folder, {"name": "full"}), one_device, jax.random.key(0))


def sharded(tiny, folder):
    """The tiny folder as two shards with an index, which is returned with its file."""
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    return index, path


def test_shards_are_read_and_an_absent_one_named(tiny, one_device, tmp_path):
    folder = tmp_path / "shards"
    sharded(tiny, folder)
    model, batch = build(tiny, {"name": "full"}), make_batch()
    found, _ = pretrained.load(folder, model, one_device, jax.random.key(0))
    wanted, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    apply = quick(model.apply)
    np.testing.assert_array_equal(apply(found, batch), apply(wanted, batch))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        pretrained.load(folder, model, one_device, jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: {"metadata": {}}, r"index\.json has no \"weight_map\""),
        (lambda index: {"weight_map": [*index]}, r"index\.json has no \"weight_map\""),
        (lambda index: [*index], r"index\.json must hold a JSON object"),
        (
            lambda index: {"weight_map": {**index, "extra": index[QUERY]}},
            r"model-0000\d-of-00002\.safetensors lacks tensor 'extra'",
        ),
    ],
)
def test_a_damaged_index_is_named(tiny, one_device, tmp_path, change, message):
    folder = tmp_path / "shards"
    index, path = sharded(tiny, folder)
    path.write_text(json.dumps(change(index)))
    with pytest.raises(UserError, match=message):
        pretrained.load(folder, build(tiny, {"name": "full"}), one_device, jax.random.key(0))


def test_a_truncated_shard_ends_the_command_with_2(
    config_file, tiny, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "shards"
    sharded(tiny, folder)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    arguments = ["train", "--config", str(config_file), "--workdir", str(tmp_path / "work")]
    assert main([*arguments, f"--config.model.path={folder}"]) == 2
    assert f"{shard} is corrupt or truncated" in capsys.readouterr().err


def test_shards_are_written_as_transformers_does(tiny, tmp_path):
    limit = 20_000
    reference = transformers.AutoModel.from_pretrained(tiny)
    reference.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    config = read_config(tiny)
    mapping.write_folder(tmp_path / "ours", tiny, config, Weights(tiny), shard_bytes=limit)
    ours, theirs = (
        json.loads((tmp_path / side / "model.safetensors.index.json").read_text())
        for side in ("ours", "theirs")
    )
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    assert set(ours["weight_map"]) == set(theirs["weight_map"])
    files = {path.name for path in (tmp_path / "ours").glob("*.safetensors")}
    assert files == set(ours["weight_map"].values()) and len(files) > 2
    for name in files:
        assert sum(array.nbytes for array in load_file(tmp_path / "ours" / name).values()) <= limit
    _, info = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize(
    ("case", "head", "copies"),
    [
        ("gpt2", "causal_lm", {"lm_head.weight": "transformer.wte.weight"}),
        (
            "t5",
            "seq2seq_lm",
            {
                "lm_head.weight": "shared.weight",
                "encoder.embed_tokens.weight": "shared.weight",
                "decoder.embed_tokens.weight": "shared.weight",
            },
        ),
        ("bart", "seq2seq_lm", {"model.encoder.embed_tokens.weight": "model.shared.weight"}),
    ],
)
def test_copies_of_tied_tensors_are_passed_over(case, head, copies, one_device, tmp_path):
    reference = Reference.make(case, head, tmp_path)
    model = build_tuned(read_config(tmp_path), methods.create({"name": "full"}), {}, {"head": head})
    tensors = {
        name: tensor.contiguous().clone() for name, tensor in reference.model.state_dict().items()
    }
    assert set(copies) <= set(tensors)  # as folders written by torch itself have them
    params, _ = pretrained.load(tmp_path, model, one_device, jax.random.key(0))
    (tmp_path / "model.safetensors.index.json").unlink()
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    again, _ = pretrained.load(tmp_path, model, one_device, jax.random.key(0))
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, again[path], err_msg=path)
