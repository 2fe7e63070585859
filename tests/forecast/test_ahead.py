"""What is said of a step before it runs, against the step itself and against formulas by hand."""

import json
import math
import re

import jax
import pytest

from ftjax import methods
from ftjax.forecast.hlo import summarize
from ftjax.forecast.least_work import Least
from ftjax.forecast.lowering import abstract_batch, abstract_state, compiled
from ftjax.forecast.lowering import abstract_recipe as recipe_of
from ftjax.forecast.text import lines
from ftjax.parallel.mesh import make_mesh
from ftjax.setup.model import place_model
from ftjax.tasks.classification import Classification
from ftjax.training.step import init_state
from tests.conftest import ftjax
from tests.covering import product
from tests.forecast.abstract import LENGTH, LLAMA, ROWS, config_of, needs_libtpu, write_config
from tests.methods.bases import ALIKE

GIB, LAYERS = 2**30, 3
SMALL = {
    "galore": {"rank": 8},
    "compacter": {"reduction": 8},
    "compacter_pp": {"reduction": 8},
    "qlora": {"bits": "int8"},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("llama"))


TRAINED = [(name,) for name in methods.METHODS if methods.find(name).trains]
OWN = {"galore", "lisa", "gradual_unfreezing"}  # of their own state
FEW = [each for each in TRAINED if each[0] in OWN or each[0] not in ALIKE]


@pytest.mark.parametrize("method", product(TRAINED, FEW))
def test_shapes_and_places_are_those_of_a_run(shallow, method):
    """Of every parameter, trainable or not, and of every moment."""
    small = {f"method_{name}": value for name, value in SMALL.get(method, {}).items()}
    config = config_of(shallow, method, "classification", mesh_fsdp=2, mesh_tensor=2, **small)
    run, recipe = place_model(config, ("0", "1")), recipe_of(config)
    found, frozen = abstract_state(recipe, run.mesh)
    phase = recipe.phase(0)
    optimizer = recipe.optimizer(phase)
    state = init_state(run.trainable, optimizer, 0, run.mesh, phase.partition)
    for said, real in ((found, state), (frozen, run.frozen)):
        assert jax.tree.structure(said) == jax.tree.structure(real)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(said), jax.tree.leaves(real), strict=True
        ):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), path
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), path


@pytest.mark.parametrize("batching", ["pad", "pack"])
def test_batches_are_those_of_the_loader(config_file, tmp_path, batching):
    work = tmp_path / "work"
    changes = [f"--config.data.batching={batching}", "--config.train.steps=1"]
    ftjax("train", "--config", config_file, "--workdir", work, *changes,
          "--config.train.dump_programs=True")  # fmt: skip
    saved = json.loads((work / "config.json").read_text())
    config = config_of(saved["model"]["path"], "full", "classification", data_batching=batching)
    said = abstract_batch(config, Classification())
    text = next((work / "programs").glob("*.hlo.txt")).read_text()
    found = re.findall(r"%batch__(\w+?)__\S* = (\w+)\[([\d,]*)\]\S* parameter", text)
    kinds = {"int32": "s32", "float32": "f32"}
    assert {name: (kind, len(shape.split(","))) for name, kind, shape in found} == {
        name: (kinds[x.dtype.name], x.ndim) for name, x in said.items()
    }
    assert next((work / "programs").glob("*.cost.json")).stat().st_size > 100


def by_hand(trained, head):
    """FLOPs of kernels: forward, what goes back through each, and gradients of those trained."""
    tokens, d = ROWS * LENGTH, 64
    layer = {"query": d * 64, "key": d * 32, "value": d * 32, "output": 64 * d}
    layer |= {"gate": d * 128, "up": d * 128, "down": 128 * d}
    total = LAYERS * (2 * sum(layer.values()) + sum(layer[name] for name in trained))
    vocabulary = d * 256 * (2 + head)
    return 2 * tokens * (total + vocabulary)


def test_least_flops_by_hand(llama):
    every = ("query", "key", "value", "output", "gate", "up", "down")
    found = Least(config_of(llama, "full"))()
    # Nothing asks for the gradient of the words' look-up input; all else goes back.
    assert found["dense"] == by_hand(every, head=1)
    scores = 2 * ROWS * 4 * LENGTH * LENGTH * 16  # of one product of tokens with tokens
    assert found["attention"] == 3 * 2 * LAYERS * scores * (LENGTH + 1) / (2 * LENGTH)
    lora = Least(config_of(llama, "lora", method_rank=4))()
    factors = 2 * ROWS * LENGTH * 3 * (64 * 4 + 4 * 64 + 64 * 4 + 4 * 32) * LAYERS
    first = (
        2 * ROWS * LENGTH * (64 * 64 + 64 * 32 + 64 * 32 + 2 * 64 * 4)
    )  # below it nothing trains
    assert lora["dense"] == by_hand((), head=0) + factors - first


def test_least_flops_are_those_of_any_layout(llama):
    """What is computed again, in which layers, and by which cores is sent, is not in them."""
    plain = {"model_segments": (2, 1)}
    layout = {"model_remat": ("full", "dots"), "model_parts": 2, "model_sparse_cores": True}
    found, wanted = (Least(config_of(llama, "lora", **plain, **more))() for more in (layout, {}))
    assert found == wanted


CASES = [(method, {axis: 8}) for axis in ("fsdp", "data") for method in ("full", "lora")]


@pytest.mark.parametrize(
    ("method", "mesh"),
    product(CASES, [CASES[0], CASES[3]]),
    ids=str,
)
def test_a_mesh_sends_what_it_must(llama, method, mesh):
    """Over fsdp kernels are gathered and gradients scattered; over data gradients are summed."""
    changes = {f"mesh_{axis}": size for axis, size in {"data": 1, **mesh}.items()}
    config = config_of(llama, method, **changes)
    recipe = recipe_of(config)
    program, _ = compiled(recipe, make_mesh(**{"data": 1, **mesh}))
    sent = summarize(program.as_text()).sent
    trainable, total = recipe.tuned.partition.counts(recipe.tuned.shapes)
    if "data" in mesh:
        assert sent["all-gather"] == 0 and sent["reduce-scatter"] == 0
        assert 4 * trainable <= sent["all-reduce"] < 4 * trainable + 64
    else:
        kernels = 4 * total
        assert sent["all-reduce"] < 0.05 * kernels  # norms and sums
        assert sent["all-gather"] < 2.2 * kernels + 4 * ROWS * LENGTH * 64 * 2
        assert sent["reduce-scatter"] >= 0.8 * 4 * trainable / 8 * (method == "full")


X = 4 * ROWS * LENGTH * 64  # bytes of one activation of all rows
SUMS = 128  # bytes of sums of scalars and of masks


def sent_by(folder, method, whole=(), **mesh):
    """Bytes by kind of collective, and bytes of what trains."""
    sizes = {f"mesh_{axis}": size for axis, size in mesh.items()}
    config = config_of(folder, method, model_whole=whole, **sizes)
    recipe, count = recipe_of(config), math.prod(mesh.values())
    program, _ = compiled(recipe, make_mesh(**mesh, devices=jax.devices()[:count]))
    return summarize(program.as_text()).sent, 4 * recipe.tuned.partition.counts(
        recipe.tuned.shapes
    )[0]


@pytest.mark.parametrize("method", product([("full",), ("lora",)], [("full",)]))
def test_a_sequence_mesh_sends_keys_and_values(llama, method):
    """Gathered for every query, their gradients summed; and gradients of weights."""
    sent, trainable = sent_by(llama, method, data=1, sequence=4)
    keys_and_values = LAYERS * 2 * X / 2  # half as many heads
    assert keys_and_values <= sent["all-gather"] < keys_and_values + SUMS
    # LoRA's factors A of a row's tokens give no gradient that is summed with anything else.
    least = trainable + keys_and_values * (method == "full")
    assert least <= sent["all-reduce"] < trainable + keys_and_values + SUMS
    assert sent.keys() <= {"all-gather", "all-reduce", "collective-permute"}
    assert sent["collective-permute"] < SUMS  # targets of the tokens before


@pytest.mark.parametrize("method", product([("full",), ("lora",)], [("lora",)]))
def test_a_tensor_mesh_sends_activations_only(llama, method):
    """Sums of what heads and wide features give, and no kernel."""
    sent, trainable = sent_by(llama, method, data=1, tensor=2)
    assert sent.keys() == {"all-reduce"}
    # Attention's and feed-forward's outputs, and gradients of the inputs of five products; below
    # the first layer's none where the words are frozen; the words' and the head's.
    assert 4 * LAYERS * X < sent["all-reduce"] < (7 * LAYERS + 2) * X + trainable / 10 + SUMS


def test_an_expert_mesh_sends_tokens(tmp_path):
    """To all experts and back, in both passes; experts' kernels and gradients stay."""
    mixture = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    folder = write_config(tmp_path, **mixture, sliding_window=None)
    sent, trainable = sent_by(folder, "full", data=1, expert=4)
    # What is sent to experts and back; on CPUs all have all rows, of which each takes its own: those
    # of two choices a token, and the room for what may come, one choice a token of each device.
    rows = LAYERS * (2 * X + 4 * X)
    assert rows <= sent["all-gather"] < rows + LAYERS * 4096  # how many rows, and choices
    assert sent["reduce-scatter"] == LAYERS * (2 * X + 4 * X) / 4
    others = trainable - 4 * LAYERS * 4 * 3 * 64 * 128
    assert others <= sent["all-reduce"] < others + SUMS


@needs_libtpu
def test_slices_send_gradients_once(tmp_path):
    """Each chip what it holds of them after they are scattered in its slice, in bfloat16."""
    wide = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1024}
    wide["max_position_embeddings"] = 128
    model, output = write_config(tmp_path, **wide), tmp_path / "found.json"
    arguments = ["compile", "--config", "configs/ahead.py:full", f"--config.model.path={model}"]
    arguments += ["--config.data.max_length=128", "--config.train.batch_size=8", "--quick"]
    arguments += ["--topology", "v5e:2x2", "--slices", "2"]
    said = ftjax(*arguments, "--config.mesh.data=2", "--output", output).stdout
    assert "quick: memory alone" in said and " ms" not in said and "tokens/s" not in said
    found = json.loads(output.read_text())
    assert not {"seconds", "mfu_bound", "tokens_per_second"} & set(found)
    assert found["chips"] == 8 and found["mesh"]["fsdp"] == 4
    between = found["collectives"]["between_slices"]
    assert 2 * found["trainable"] / 4 <= between < 1.3 * 2 * found["trainable"] / 4
    split = ftjax(*arguments, "--config.mesh.data=1", expect=2).stderr
    assert "mesh.data=1 must be a multiple of the 2 slices" in split


@needs_libtpu
def test_a_step_for_chips_that_are_not_there(tmp_path):
    wide = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1024}  # chips pad to 128
    model, output = (
        write_config(tmp_path, **wide),
        tmp_path / "found.json",
    )
    arguments = ["compile", "--config", "configs/ahead.py:full", f"--config.model.path={model}"]
    arguments += ["--config.data.max_length=64", "--config.train.batch_size=8"]
    made = ftjax(*arguments, "--topology", "v5e:2x2", "--output", output, "--price=1.5")
    said, found = made.stdout, json.loads(output.read_text())
    assert found["chips"] == 4 and found["fits"] and "fits: " in said
    assert "\n".join(lines(found, 1.5)) in said
    assert found["predicted"]["seconds"] > 0 and "predicted: " in said
    assert "compiling for 4 chips of v5e:2x2\n" in made.stderr and "\r" not in made.stderr
    # 8 rows of 64 tokens a step; a second of four chips is 4 / 3600 chip-hours.
    step = max(found["seconds"].values())
    hours = 1e9 / (8 * 64) * step * 4 / 3600
    assert found["chip_hours_per_billion_tokens"] == pytest.approx(hours)
    assert f"at most {8 * 64 / step:,.0f} tokens/s, {8 * 64 / step / 4:,.0f} a chip" in said
    assert f"{hours:,.1f} chip-hours, {1.5 * hours:,.2f} at 1.5 a chip-hour" in said
    assert "memory is left: model.remat=dots_context" in said
    bad = ftjax(*arguments, "--topology", "v5e:2x2", "--price=-1", expect=2).stderr
    assert "--price -1.0 must not be negative" in bad
    # Trainable leaves and two moments in float32, over four chips.
    kept = 3 * 4 * found["parameters"] / 4
    memory = found["memory"]
    assert kept <= memory["start"] == memory["resume"] <= memory["arguments"] < 1.1 * kept + 1e5
    assert found["flops"]["dense"] >= found["least_flops"]["dense"]
    wrong = ftjax(*arguments, "--topology", "v5e:3x5", expect=2).stderr
    assert "--topology v5e:3x5" in wrong
    wide = ftjax(*arguments, "--topology", "v5e:16x32", expect=2).stderr
    assert "--topology v5e:16x32" in wide and "--slices" in wide
    uneven = ftjax(*arguments, "--topology", "v5e:2x2", "--config.train.batch_size=6", expect=2)
    assert "train.batch_size=6" in uneven.stderr
    long = ftjax(*arguments, "--topology", "v5e:2x2", "--config.data.max_length=65", expect=2)
    assert "data.max_length=65 exceeds the model's 64 positions" in long.stderr


@needs_libtpu
def test_sparse_cores_send_beside_computation(tmp_path):
    """Kernels once forward and once backward, for all that is computed of them there."""
    hidden, wide, pairs = 2048, 16640, 1024  # 68 MB a wide kernel: not kept within other layers
    sizes = {"hidden_size": hidden, "intermediate_size": wide, "num_attention_heads": 16}
    sizes |= {"num_key_value_heads": 8, "max_position_embeddings": 128}
    model, output = write_config(tmp_path, **sizes), tmp_path / "found.json"
    arguments = ["compile", "--config", "configs/ahead.py:full", f"--config.model.path={model}"]
    arguments += ["--config.data.max_length=128", "--config.train.batch_size=8"]
    arguments += ["--config.model.sparse_cores=True", "--config.model.parts=1"]
    assert (
        "waits are long"
        not in ftjax(*arguments, "--topology", "v6e:2x4", "--output", output).stdout
    )
    found = json.loads(output.read_text())
    assert found["predicted"]["overlapped"] > 0.9
    kernels = 2 * LAYERS * hidden * (2 * hidden + 2 * pairs + 3 * wide)  # in bfloat16
    others = 8 * 2 * hidden * LLAMA["vocab_size"]
    assert 2 * kernels <= found["collectives"]["bytes"]["all-gather"] < 2 * kernels + others
    none = ftjax(*arguments, "--topology", "v5e:2x4", expect=2).stderr
    assert "model.sparse_cores=True is for TPUs v5p and v6e, and this is a TPU v5 lite" in none


@needs_libtpu
def test_eight_billion_parameters_on_64_chips(tmp_path):
    """Below what other libraries need: 3.53 GiB, 165 TFLOP, 1.09 GB of all-reduce a chip."""
    output = tmp_path / "found.json"
    ftjax("compile", "--config", "configs/ahead.py:lora", "--topology", "v5e:8x8", "--quick",
          "--output", output)  # fmt: skip
    found = json.loads(output.read_text())
    assert found["memory"]["sum"] < 0.85 * 3.53 * GIB
    assert found["flops"]["dense"] < 165.5e12
    assert found["collectives"]["bytes"]["all-reduce"] < 0.05e9
    assert found["parameters"] - found["trainable"] == 8_030_261_248


def test_kernels_that_are_whole_are_not_sent(llama):
    """Those of keys and values: neither forward nor backward."""
    layouts = ((), ("key", "value"))
    sent = [sent_by(llama, "lora", whole, data=1, fsdp=4)[0]["all-gather"] for whole in layouts]
    assert sent[0] - sent[1] >= LAYERS * 2 * 4 * 64 * 32  # of each kernel at least once
