"""A large folder is loaded with little memory beyond what is kept."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import environment

LAYERS, SIZE, WIDTH, WORDS, SHARDS = 17, 1536, 4608, 24_000, 4
CONFIG = {
    "model_type": "llama",
    "vocab_size": WORDS,
    "hidden_size": SIZE,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
LAYER = {
    "input_layernorm": (SIZE,),
    "post_attention_layernorm": (SIZE,),
    "self_attn.q_proj": (SIZE, SIZE),
    "self_attn.k_proj": (SIZE // 3, SIZE),
    "self_attn.v_proj": (SIZE // 3, SIZE),
    "self_attn.o_proj": (SIZE, SIZE),
    "mlp.gate_proj": (WIDTH, SIZE),
    "mlp.up_proj": (WIDTH, SIZE),
    "mlp.down_proj": (SIZE, WIDTH),
}
SHAPES = {
    "model.embed_tokens.weight": (WORDS, SIZE),
    "model.norm.weight": (SIZE,),
    **{
        f"model.layers.{i}.{name}.weight": shape
        for i in range(LAYERS)
        for name, shape in LAYER.items()
    },
}
# Loads, in a process of its own. Memory is the most that was ever resident (VmHWM, counted anew
# from just before loading), less what was there before: it includes pages of mapped files.
CHILD = """
import json, re, sys
from pathlib import Path
import jax, numpy as np
from ftjax.build import build_tuned
from ftjax import methods, pretrained, tuned
from ftjax.formats.folder import read_config
from ftjax.formats.hf.weights import Tensor
from ftjax.parallel.mesh import make_mesh

def status(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

reads, read = {}, Tensor.__getitem__

def counted(tensor, index):
    found = read(tensor, index)
    reads.setdefault(tensor.name, []).append(found.size)
    return found

Tensor.__getitem__ = counted
folder, segments, sizes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
settings = {"segments": segments}
model = build_tuned(read_config(folder), methods.create({"name": "full"}), settings)
mesh = make_mesh(*sizes)
jax.block_until_ready(jax.numpy.zeros(()))
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
params, _ = pretrained.load(folder, model, mesh, jax.random.key(0))
peak = status("VmHWM") - before
found = {"peak": peak, "kept": 0, "reads": reads, "shards": {}, "ends": {}}
for path, leaf in params.items():
    shards = [shard.data for shard in leaf.addressable_shards]
    found["kept"] += sum(shard.nbytes for shard in shards)
    found["shards"][path] = [leaf.shape, sorted({shard.shape for shard in shards})]
    stored = model.names.stored(path)
    for (name, _), value in zip(stored, np.asarray(leaf).reshape(len(stored), -1), strict=True):
        found["ends"]["model." + name] = [float(value[0]), float(value[-1])]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder of 2 GB: holes in files, but for the first and the last number of each tensor."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names, index = list(SHAPES), {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        mine = names[number::SHARDS]
        index |= dict.fromkeys(mine, file)
        write_sparse(folder / file, mine)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    yield folder
    for file in folder.glob("*.safetensors"):
        file.unlink()


def ends(name: str) -> tuple[float, float]:
    """The first and the last number of a tensor."""
    number = list(SHAPES).index(name)
    return number + 0.25, number + 0.75


def write_sparse(path: Path, names: list[str]) -> None:
    """A safetensors file that is all holes, but for those numbers."""
    header, start = {}, 0
    for name in names:
        stop = start + 4 * math.prod(SHAPES[name])
        header[name] = {"dtype": "F32", "shape": SHAPES[name], "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        data = file.tell()
        for name, entry in header.items():
            first, last = np.array(ends(name), "<f4")
            start, stop = entry["data_offsets"]
            for offset, value in ((start, first), (stop - 4, last)):
                file.seek(data + offset)
                file.write(value.tobytes())


@pytest.mark.parametrize(("segments", "mesh"), [("scan", (1, 1, 1)), ("unrolled", (1, 4, 2))])
def test_loading_keeps_little_beyond_the_parameters(large, segments, mesh):
    devices = math.prod(mesh)
    finished = subprocess.run(
        [sys.executable, "-c", CHILD, large, segments, json.dumps(mesh)],
        capture_output=True,
        text=True,
        env=environment(devices),
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["kept"] >= sum(4 * math.prod(shape) for shape in SHAPES.values()) > 2e9
    assert found["peak"] < 1.3 * found["kept"], found["peak"] / found["kept"]
    assert {name: tuple(pair) for name, pair in found["ends"].items()} == {
        n: ends(n) for n in SHAPES
    }
    for path, (shape, shards) in found["shards"].items():
        parts = devices if len(shape) > 1 else 1  # norms are whole everywhere
        assert [math.prod(shard) for shard in shards] == [math.prod(shape) // parts], path
    for name, shape in SHAPES.items():  # each part is read once, and nothing but the part
        parts = devices if len(shape) > 1 else 1
        assert found["reads"][name] == [math.prod(shape) // parts] * parts, name
