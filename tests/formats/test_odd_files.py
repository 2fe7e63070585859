"""Files of others that ask for more than they have, or are no files."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
import transformers

from ftjax import models
from ftjax.errors import UserError
from ftjax.formats import adapter
from ftjax.formats.guard import reading
from ftjax.formats.hf.vocabulary import words_of
from ftjax.formats.hf.weights import Weights
from ftjax.formats.pickled import open_tensors, read_tensors
from ftjax.models.config_values import Values
from ftjax.options import options
from tests.formats.bounds import Endless, bounded
from tests.formats.test_gguf import write


@pytest.mark.parametrize(
    "target", ["../{}", "{}", "..", "", "a/{}", "x\0.safetensors", "config.json"]
)
def test_what_an_index_names_elsewhere_is_not_opened(target, tmp_path):
    """There lies a pipe, at which who opens it waits."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    inside = tmp_path / "folder"
    inside.mkdir()
    (inside / "config.json").write_text("{}")
    pipe = tmp_path / "pipe.safetensors"
    named = target.format(pipe.name if target.startswith("..") else pipe)
    whole = json.dumps({"weight_map": {"x": named}})
    (inside / "model.safetensors.index.json").write_text(whole)
    with bounded(), pytest.raises(UserError, match="which is no file of weights beside it"):
        Weights(inside)


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "model-1.safetensors")
    for name in ("config.json", "adapter_config.json"):
        os.mkfifo(tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model-1.safetensors"}}))
    with bounded():
        for read in (Weights, models.read_config, adapter.read_method):
            with pytest.raises(UserError, match="is a pipe or a device, and should be a file"):
                read(tmp_path)
        index.write_text('{"weight_map": {}}')
        with pytest.raises(UserError, match=r'index.json has no "weight_map"'):
            Weights(tmp_path)
        index.unlink()
        (tmp_path / "model.safetensors").mkdir()
        with pytest.raises(UserError, match="is a folder, and should be a file"):
            Weights(tmp_path)


def test_tensors_ask_for_no_more_than_a_file_has(tmp_path):
    file = tmp_path / "x.bin"
    one = torch.zeros(1)
    shared = torch.ones(3, 1)
    torch.save({"x": shared.expand(3, 4), "y": shared}, file)  # as such, it is read
    np.testing.assert_array_equal(read_tensors(file)["x"], np.ones((3, 4)))
    for many in ({"x": one.expand(10**6, 10**6)}, {str(i): one.expand(10**7) for i in range(300)}):
        torch.save(many, file)
        with bounded(), pytest.raises(UserError, match=r"x\.bin: its tensors are of \d+ bytes"):
            read_tensors(file)


def test_a_pickle_does_not_say_how_much_room_is_made(tmp_path):
    """It numbers an object 2**27, for which a table of as many is made in C."""
    file, number = tmp_path / "x.bin", struct.pack("<I", 2**27)
    state = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.LONG_BINPUT + number + pickle.STOP
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", state)
    with bounded():
        assert open_tensors(file) == {}


def test_lists_of_gguf_are_as_long_as_the_file(tmp_path):
    """Texts of tokens read as bytes: what follows is then no list either."""
    tokens = [f"token {i}" for i in range(2000)]
    entries = {"tokenizer.ggml.tokens": tokens, "llama.context_length": 8}
    table = {"token_embd.weight": np.ones((2, 2), np.float32)}
    file = write(tmp_path / "x.gguf", "llama", entries, table)
    content = file.read_bytes()
    start = content.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens")
    for kind in range(13):
        changed = content[: start + 4] + struct.pack("<I", kind) + content[start + 8 :]
        file.write_bytes(changed)
        with bounded():
            if changed == content:
                assert words_of(file) == len(tokens)
                continue
            with pytest.raises(UserError, match="x.gguf is not a GGUF file, or is truncated"):
                words_of(file)
    long = struct.pack("<Q", 2**40)
    file.write_bytes(content[: start + 8] + long + content[start + 16 :])
    with bounded(), pytest.raises(UserError, match=f"it has a list of {2**40} values"):
        words_of(file)


@pytest.mark.parametrize("family", [*models.FAMILIES])
def test_every_key_of_a_family_has_its_values(family):
    """transformers' own defaults are among them; a text, a list or a number too large is not."""
    known = models.family({"model_type": family}).KEYS[family]
    allowed = options(Values)
    assert known.read <= allowed.keys()
    defaults = transformers.AutoConfig.for_model(family).to_dict()
    models.configure(defaults, models_options())
    for key in known.read & defaults.keys():
        for bad in ([] if "rope" in key else [{"a": [{}]}]) + [[[[]]], 10**400]:
            with pytest.raises(UserError, match=key):
                models.configure({**defaults, key: bad}, models_options())


def models_options():
    from ftjax.models.layers import Options

    return Options()


def test_a_guard_hides_no_fault_of_a_program(tmp_path):
    for fault in (NameError, AssertionError, KeyboardInterrupt, ImportError, Endless):
        with pytest.raises(fault), reading(tmp_path / "x"):
            raise fault
    damage = pytest.raises(UserError, match="x is corrupt or truncated: ZeroDivisionError")
    with damage, reading(tmp_path / "x"):
        1 / 0  # noqa: B018
