"""Folders are written whole or not at all, a tensor at a time, from many devices and hosts."""

import errno
import json
import math
import os
import resource
import shutil
import tracemalloc

import jax
import numpy as np
import pytest

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats import export
from ftjax.formats.export import whole, write_export
from ftjax.formats.folder import Weights, read_config
from ftjax.parallel.mesh import make_mesh, param_shardings
from tests.conftest import build, here, perturbed
from tests.covering import product
from tests.formats.folders import contents, start
from tests.models.cases import CASES
from tests.models.reference import Reference
from tests.parallel import processes


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
    options += ["--config.train.steps=2", f"--config.model.path={base}"]
    train = ["train", "--config", f"{config_file}:lora", "--workdir", work, *options]
    here(*train, devices=8)
    here("export", "--workdir", work, "--format", "peft", "--output", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    asked = ["export", "--workdir", work, "--format", "hf", "--max-shard-size", "20KB"]
    here(*asked, "--output", tmp_path / "one")
    processes.ended(processes.start([*asked, "--output", tmp_path / "two"], 2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len([*(tmp_path / "two").glob("*.safetensors")]) > 1
