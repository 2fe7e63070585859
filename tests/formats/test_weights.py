"""Weights as torch and older libraries wrote them: pickled, wrapped, with buffers beside."""

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from functools import partial

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.adapter import load_into, read_method
from ftjax.formats.folder import fingerprint, open_weights, read_config
from ftjax.formats.hf.weights import Weights
from ftjax.formats.pickled import open_tensors, read_tensors
from tests.models.cases import CASES
from tests.models.random_models import natural
from tests.models.reference import Reference


def state_of(folder) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.asarray(x)) for name, x in Weights(folder).items()}


def pickled_folder(tiny, folder, legacy=False, shards=1):
    """The tiny folder with torch's files in place of safetensors."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    state, names, index = state_of(tiny), list(state_of(tiny)), {}
    for number in range(shards):
        file = "pytorch_model.bin"
        if shards > 1:
            file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = OrderedDict((name, state[name]) for name in names[number::shards])
        torch.save(part, folder / file, _use_new_zipfile_serialization=not legacy)
        index |= dict.fromkeys(part, file)
    if shards > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "pytorch_model.bin.index.json").write_text(text)
    return folder


@pytest.mark.parametrize(("legacy", "shards"), [(False, 1), (True, 1), (False, 3)])
def test_a_folder_of_torchs_files_is_what_its_safetensors_are(tiny, tmp_path, legacy, shards):
    folder = pickled_folder(tiny, tmp_path / "folder", legacy, shards)
    found, wanted = open_weights(folder), open_weights(tiny)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    assert len(fingerprint(folder)) == 64
    files = sorted(folder.glob("*.bin"))
    files[-1].write_bytes(files[-1].read_bytes()[:-200])
    with pytest.raises(UserError, match=r"\.bin(: it is truncated| is corrupt)"):
        open_weights(folder)


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_read_as_torch_wrote_them(tmp_path, legacy):
    whole = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5) / 7
    state = {
        "whole": whole,
        "view": whole[1:, ::2],  # of the same storage, with strides
        "turned": whole[0].T,
        "one": whole[2, 3, 4],
        "wide": torch.ones(1, 3).expand(4, 3),  # of no stride
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(whole[0]),
        "buffer": torch.nn.Buffer(whole[1]),
        **{
            str(kind).removeprefix("torch."): whole.to(kind)
            for kind in (torch.bfloat16, torch.half, torch.double, torch.int8, torch.bool)
        },
    }
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(file)
    assert set(found) == set(state)
    for name, tensor in state.items():
        wanted = tensor.detach().float().numpy()
        np.testing.assert_array_equal(found[name].astype(np.float32), wanted, err_msg=name)
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
    view = open_tensors(file)["view"]
    for index in [(slice(1, 2),), (slice(None), slice(1, None)), (slice(0, 2), slice(0), slice(2))]:
        np.testing.assert_array_equal(view[index], state["view"].numpy()[index])


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/ftjax-was-run", "w"))


def archive(file, state_pickle: bytes) -> None:
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("archive/data.pkl", state_pickle)
        written.writestr("archive/data/0", b"\0" * 16)


def place(offset, shape, strides, tail=b"") -> bytes:
    """A pickle of one tensor of a storage of four numbers."""
    out = io.BytesIO()
    out.write(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.BINUNICODE)
    out.write(struct.pack("<I", 1) + b"x" + b"ctorch._utils\n_rebuild_tensor_v2\n(")
    out.write(b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ")
    for value in (offset, shape, strides):
        out.write(pickle.dumps(value, 2)[2:-1])
    out.write(b"\x89c collections\nOrderedDict\n)R".replace(b" ", b"") + b"tR" + tail + b"s.")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"x": Evil()}), "names .*open, which is not read"),
        (pickle.dumps({"x": 3}), "more than tensors|corrupt"),
        (pickle.dumps([1]), "more than tensors|corrupt"),
        (b"ctorch\nload\n.", "names torch.load"),
        (b"ctorch\nFloatStorage\n(X\x01\0\0\0atR.", "corrupt"),  # a name is not called
        (place(0, (4,), (1,), b"}X\x05\0\0\0shapeK\x01sb"), "corrupt"),  # nor set in
        (place(1, (4,), (1,)), "outside its storage"),
        (place(0, (4, 4), (4, 1)), "outside its storage"),
        (place(-1, (2,), (1,)), "no such shape"),
        (place(0, (2,), (1, 1)), "no such shape"),
        (place(0, ("a",), (1,)), "no such shape"),
    ],
)
def test_what_is_no_file_of_tensors_runs_nothing(tmp_path, content, message):
    file = tmp_path / "pytorch_model.bin"
    archive(file, content)
    with pytest.raises(UserError, match=message):
        open_tensors(file)
    # The same in the form of before torch 1.6.
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    storages = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + b"\0" * 16
    file.write_bytes(b"".join(pickle.dumps(x, 2) for x in head) + content + storages)
    with pytest.raises(UserError, match=message):
        open_tensors(file)


def test_a_sound_place_is_read(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    archive(file, place(1, (3,), (1,)))
    np.testing.assert_array_equal(read_tensors(file)["x"], np.zeros(3))


def test_weights_of_other_libraries_are_named(tiny, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    with pytest.raises(UserError, match=r"has no model.safetensors or pytorch_model.bin"):
        open_weights(folder)
    (folder / "tf_model.h5").touch()
    with pytest.raises(UserError, match=r"only TensorFlow's weights, tf_model.h5"):
        open_weights(folder)


def test_an_index_names_files_beside_it(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "folder", ignore=shutil.ignore_patterns("model.safetensors"))
    index = tmp_path / "folder" / "model.safetensors.index.json"
    for outside in (
        f"../{tiny.name}/model.safetensors",
        str(tiny / "model.safetensors"),
        "a/b",
        ".",
    ):
        index.write_text(json.dumps({"weight_map": {"pooler.dense.weight": outside}}))
        with pytest.raises(UserError, match="which is no file of weights beside it"):
            open_weights(tmp_path / "folder")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_was_not_fetched_is_named_so(tiny, tmp_path, name):
    shutil.copytree(tiny, tmp_path / "folder", ignore=shutil.ignore_patterns("model.safetensors"))
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3\n"
    (tmp_path / "folder" / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} only points to .*git lfs pull"):
        open_weights(tmp_path / "folder")


@pytest.mark.parametrize("compressed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_asks_for_more_memory_than_it_is_large_is_refused(tmp_path, compressed):
    file, size = tmp_path / "pytorch_model.bin", 2**27
    many = pickle.PROTO + b"\x02" + pickle.BINBYTES8 + struct.pack("<Q", size)
    if compressed == zipfile.ZIP_STORED:
        many = pickle.PROTO + b"\x04" + pickle.BINBYTES8 + struct.pack("<Q", 2**45)
    with zipfile.ZipFile(file, "w", compressed) as written:
        written.writestr("archive/data.pkl", many + b"0" * size * bool(compressed) + b".")
    with pytest.raises(UserError, match="it is compressed" if compressed else "truncated"):
        open_tensors(file)


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (
                lambda state, kind=kind: {QUERY: state[QUERY].to(kind)},
                rf"{QUERY}' is stored as {said}",
            )
            for kind, said in [
                (torch.int8, "int8"),
                (torch.bool, "bool"),
                (torch.float8_e4m3fn, "float8_e4m3fn"),
            ]
        ),
        (lambda state: {QUERY: torch.tensor(1.0)}, rf"{QUERY}' .*has shape \(\)"),
        (lambda state: {QUERY: torch.zeros(0, 4)}, rf"{QUERY}' .*has shape \(4, 0\)"),
        (
            lambda state: {"embeddings.word_embeddings.bias": torch.ones(4)},
            "have 'embeddings.word_embeddings.bias', and .* is without it",
        ),
        (lambda state: {"embeddings.word_embeddings.bias": torch.zeros(4)}, None),  # as of AutoGPTQ
    ],
)
def test_tensors_that_are_no_parameters_as_they_are(change, message, tiny, one_device, tmp_path):
    shutil.copytree(tiny, tmp_path / "folder", ignore=shutil.ignore_patterns("model.safetensors"))
    state = state_of(tiny)
    save_file(state | change(state), tmp_path / "folder" / "model.safetensors")
    model = build_tuned(read_config(tiny), methods.create({"name": "full"}), {}, {})
    load = partial(pretrained.load, tmp_path / "folder", model, one_device, jax.random.key(0))
    if message is None:
        load()
        return
    with pytest.raises(UserError, match=message):
        load()


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.module."])
def test_wrappers_are_taken_off_names(tiny, tmp_path, wrapper):
    shutil.copytree(tiny, tmp_path / "folder", ignore=shutil.ignore_patterns("model.safetensors"))
    state = {wrapper + name: tensor for name, tensor in state_of(tiny).items()}
    inside = "encoder.layer.1."  # a part that was wrapped by itself
    state = {name.replace(inside, f"{inside}{wrapper}"): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "folder" / "pytorch_model.bin")
    assert set(open_weights(tmp_path / "folder")) == set(open_weights(tiny))


# Buffers and parts that published folders hold besides, which their current classes do not have.
PUBLISHED = {
    "llama": ["model.layers.{}.self_attn.rotary_emb.inv_freq"],
    "gpt2": ["transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"],
    "gpt_neo": ["transformer.h.{}.attn.attention.bias"],
    "bart": ["model.encoder.version", "model.decoder.version"],
    "deberta-v3": [
        "mask_predictions.dense.weight",
        "deberta.embeddings.position_embeddings.weight",
    ],
    "electra": ["discriminator_predictions.dense.weight"],
    "t5": ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
}


@pytest.mark.parametrize("case", [*CASES])
def test_buffers_that_transformers_passes_over_are_passed_over(case, one_device, tmp_path):
    head = natural(case)
    reference = Reference.make(case, head, tmp_path)
    model = build_tuned(read_config(tmp_path), methods.create({"name": "full"}), {}, {"head": head})
    wanted, _ = pretrained.load(tmp_path, model, one_device, jax.random.key(0))
    state = state_of(tmp_path)
    state |= dict(reference.model.named_buffers())  # those that are not stored any more too
    names = {name.format(i) for name in PUBLISHED.get(case, []) for i in range(3)}
    state |= {name: torch.zeros(3) for name in names}
    for file in [*tmp_path.glob("*.safetensors"), tmp_path / "model.safetensors.index.json"]:
        file.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    found, absent = pretrained.load(tmp_path, model, one_device, jax.random.key(0))
    assert not absent
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_a_pickled_adapter_is_read(tiny, one_device, tmp_path):
    """As `peft` wrote them: the same parameters as of its safetensors."""
    base = transformers.AutoModel.from_pretrained(tiny)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=3, init_lora_weights=False))
    for name, safe in (("safe", True), ("pickled", False)):
        theirs.save_pretrained(tmp_path / name, safe_serialization=safe)
    assert (tmp_path / "pickled" / "adapter_model.bin").exists()
    settings = read_method(tmp_path / "pickled")
    assert settings == read_method(tmp_path / "safe") and settings["rank"] == 3
    model = build_tuned(read_config(tiny), methods.create(settings), {}, {})
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    found, wanted = (load_into(model, params, tmp_path / name)[0] for name in ("pickled", "safe"))
    changed = [path for path, leaf in params.items() if (leaf != wanted[path]).any()]
    assert any(path.endswith("lora_b") for path in changed)
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_the_reference_reads_what_is_pickled(tiny, tmp_path):
    folder = pickled_folder(tiny, tmp_path / "folder")
    theirs = transformers.AutoModel.from_pretrained(folder).state_dict()
    for name, tensor in open_weights(folder).items():
        np.testing.assert_array_equal(tensor, theirs[name].numpy(), err_msg=name)
