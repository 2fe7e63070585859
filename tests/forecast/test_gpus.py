"""What is said of a step on GPUs, where none is there, against formulas by hand."""

import importlib.util
import json

import pytest

from ftjax.errors import UserError
from ftjax.forecast.chips import peak_flops
from ftjax.forecast.gpus import GPUS
from ftjax.forecast.groups import first_group, over_hosts
from ftjax.forecast.topologies import devices_of
from ftjax.models import triton
from ftjax.models.cudnn import kernel_flops
from tests.conftest import ftjax
from tests.forecast.abstract import write_config

PLUGIN = importlib.util.find_spec("jax_plugins")
needs_plugin = pytest.mark.skipif(
    PLUGIN is None or importlib.util.find_spec("jax_plugins.xla_cuda12") is None,
    reason="ftjax[gpu-aot] is not installed: not run",
)


@pytest.mark.parametrize("name", ["h100", "h100:0", "h100:9", "h100:2x4", "h100:08"])
def test_hosts_have_up_to_eight(name):
    with pytest.raises(UserError, match=f"--topology {name}: a host has 1 to 8 GPUs.*--hosts"):
        devices_of(name)


def test_unknown_kinds_are_met_with_the_nearest():
    with pytest.raises(UserError, match="'h10' is not a chip .*h100"):
        devices_of("h10:8")


def test_rates_are_those_of_the_table_of_devices():
    """By the name that a driver gives a GPU."""

    class Device:
        def __init__(self, kind: str) -> None:
            self.device_kind = kind

    for gpu in GPUS.values():
        assert peak_flops([Device(gpu.name)] * 2) == 2 * gpu.chip.flops


GATHERED = "), channel_id=1, replica_groups="


@pytest.mark.parametrize(
    ("groups", "first"),
    [  # as programs for GPUs write them
        ("{{0,1,2,3},{4,5,6,7}}", (0, 1, 2, 3)),
        ("{{0,4},{1,5},{2,6},{3,7}}", (0, 4)),
        ("{{0},{1}}", (0,)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("[8,1]<=[8]", (0,)),
        ("mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", tuple(range(8))),
        ("mesh['axis_0'=8,'axis_1'=1] {'axis_1'}", (0,)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_2'}", (0, 1, 4, 5)),
    ],
)
def test_groups_of_collectives(groups, first):
    assert first_group(f"{GATHERED}{groups}, use_global_device_ids=true") == first


def test_what_the_network_brings():
    """Of two hosts of four: in rings over all, each adapter has a fourth of what comes in."""
    every, within, pairs = "{{0,1,2,3,4,5,6,7}}", "{{0,1,2,3},{4,5,6,7}}", "{{0,4},{1,5}}"
    assert over_hosts(GATHERED + every, "all-gather", 4) == 1 / 4
    assert over_hosts(GATHERED + every, "all-reduce", 4) == 2 / 4
    assert over_hosts(GATHERED + every, "reduce-scatter", 4) == 8 / 4  # of what is an eighth
    assert over_hosts(GATHERED + every, "all-to-all", 4) == 1 / 2
    assert over_hosts(GATHERED + within, "all-gather", 4) == 0
    assert over_hosts(GATHERED + pairs, "all-to-all", 4) == 1 / 2
    ring = "), source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}, metadata={}"
    assert over_hosts(ring, "collective-permute", 4) == 2 / 8


def test_work_of_attention_by_hand():
    """Two rows of six queries and heads of 8: each product of each pair that is seen is 16."""
    shape = ("bf16", (2, 6, 4, 8))
    forward, backward = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
    rows = 2 * 4
    assert kernel_flops(f"{forward} NO_MASK", [shape, shape]) == 2 * rows * 36 * 16
    assert kernel_flops(f"{forward} CAUSAL", [shape, shape]) == 2 * rows * 21 * 16
    assert kernel_flops(f"{backward} CAUSAL", [shape, shape]) == 5 * rows * 21 * 16
    assert kernel_flops(f"{forward} CAUSAL 2", [shape, shape]) == 2 * rows * 11 * 16
    assert kernel_flops("splash_mha_fwd", [shape, shape]) == 0
    assert triton.kernel_flops("mha_forward causal", [shape, shape]) == 2 * rows * 21 * 16
    assert triton.kernel_flops("mha_backward both_sides", [shape, shape]) == 7 * rows * 36 * 16
    assert triton.kernel_flops("mha_preprocess_backward causal", [shape, shape]) == 0


@needs_plugin
def test_a_step_for_gpus_that_are_not_there(tmp_path):
    """Two hosts of two: products, attention, memory and traffic by hand."""
    rows, length, width, layers = 8, 64, 512, 3
    sizes = {"hidden_size": width, "intermediate_size": 1024, "vocab_size": 1024}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    model, output = write_config(tmp_path, **sizes, **heads), tmp_path / "forecast.json"
    arguments = ["compile", "--config", "configs/ahead.py:full", f"--config.model.path={model}"]
    arguments += [f"--config.data.max_length={length}", f"--config.train.batch_size={rows}"]
    arguments += ["--config.model.parts=1", "--config.model.remat=none"]
    said = ftjax(*arguments, "--topology", "h100:2", "--hosts", "2", "--output", output).stdout
    forecast = json.loads(output.read_text())
    assert "h100:2 x 2 hosts: 4 chips, fsdp 4" in said and "NCCL's buffers" in said
    assert forecast["fits"] and "compiler" not in forecast["seconds"]
    kept = 3 * 4 * forecast["parameters"] / 4  # weights and two moments in float32
    assert kept <= forecast["memory"]["start"] <= forecast["memory"]["arguments"] < 1.1 * kept + 1e5
    assert forecast["flops"]["dense"] == pytest.approx(forecast["least_flops"]["dense"])
    if importlib.util.find_spec("nvidia.cudnn"):
        pairs = rows / 4 * 4 * length * (length + 1) / 2
        assert forecast["flops"]["kernels"] == layers * (2 + 5) * 2 * pairs * width / 4
    kernels = 2 * (forecast["parameters"] - 1024 * width)  # in bfloat16, but for the words
    sent, runs = forecast["collectives"]["bytes"], forecast["collectives"]["runs"]
    assert kernels <= sent["all-gather"] < 2.1 * kernels and runs["all-gather"]
    assert forecast["collectives"]["between_slices"] >= kernels / 2
