"""What is read off a program's text, against what was put in."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ftjax.forecast.hlo import summarize


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_loops_count_as_often_as_they_run():
    """Five steps of three products inside one loop and two outside."""

    def function(x, w):
        def outer(x, _):
            def inner(x, _):
                return jnp.sin(x @ w), None

            x, _ = jax.lax.scan(inner, x, None, length=3)
            return x, None

        x, _ = jax.lax.scan(outer, x, None, length=5)
        return x @ w @ w

    found = summarize(text_of(function, jnp.ones((16, 64)), jnp.ones((64, 64))))
    assert found.flops == (5 * 3 + 2) * 2 * 16 * 64 * 64


@pytest.mark.parametrize(
    ("settings", "taps"),
    [
        ({}, 6 * 3),
        ({"padding": ((2, 2),)}, 8 * 3),  # what is outside costs nothing
        ({"window_strides": (2,)}, 3 * 3),
        ({"rhs_dilation": (2,)}, 4 * 3),
        ({"lhs_dilation": (2,)}, 7 * 2 + 6),  # of zeros between inputs neither
    ],
)
def test_convolutions_count_what_the_window_meets(settings, taps):
    def function(x, w):
        settings_ = {"window_strides": (1,), "padding": ((0, 0),), **settings}
        return jax.lax.conv_general_dilated(x, w, **settings_)

    x, w = jnp.ones((4, 5, 8)), jnp.ones((7, 5, 3))
    module = jax.jit(function).lower(x, w).compiler_ir("hlo").as_hlo_text()
    assert summarize(module).flops == 2 * 4 * 5 * 7 * taps


def test_collectives_are_counted_by_what_they_give():
    mesh = jax.make_mesh((8,), ("x",), devices=jax.devices()[:8])

    def local(x):
        def step(x, _):
            return jax.lax.psum(x, "x") / 8, None

        x, _ = jax.lax.scan(step, x, None, length=3)
        return jax.lax.all_gather(x, "x"), jax.lax.psum_scatter(x, "x", tiled=True)

    function = jax.shard_map(
        local, mesh=mesh, in_specs=P(), out_specs=(P(), P("x")), check_vma=False
    )
    x = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, P()))
    found = summarize(text_of(function, x))
    size = 64 * 32 * 4
    assert found.sent == {
        "all-reduce": 3 * size,
        "all-gather": 8 * size,
        "reduce-scatter": size / 8,
    }
    assert found.counts == {"all-reduce": 3, "all-gather": 1, "reduce-scatter": 1}


FUSED = """
%all-reduce-scatter.1 (input: bf16[64,16]) -> bf16[16,16] {
  %input = bf16[64,16]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,16]{1,0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %start = s32[] constant(0)
  ROOT %part = bf16[16,16]{1,0} dynamic-slice(%all-reduce.1, %start, %start), dynamic_slice_sizes={16,16}
}

ENTRY %main (x: bf16[64,16]) -> bf16[16,16] {
  %x = bf16[64,16]{1,0} parameter(0)
  ROOT %fusion = bf16[16,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_fused_scatter_of_tpus_is_no_all_reduce():
    found = summarize(FUSED)
    assert found.sent == {"reduce-scatter": 16 * 16 * 2} and found.counts == {"reduce-scatter": 1}


IN_PIECES = """
%started (a: bf16[8,16]) -> (bf16[8,16], bf16[64,16]) {
  %a = bf16[8,16]{1,0} parameter(0)
  %all-gather.1 = bf16[64,16]{1,0} all-gather(%a), channel_id=1, dimensions={0}
  ROOT %state = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) custom-call(%all-gather.1)
}

%async_collective_fusion.7 (b: bf16[8,16]) -> bf16[64,16] {
  %b = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,16]{1,0} all-gather(%b), channel_id=1, dimensions={0}
}

%ended (c: bf16[8,16]) -> bf16[64,16] {
  %c = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.3 = bf16[64,16]{1,0} all-gather(%c), channel_id=1, dimensions={0}
}

ENTRY %main (x: bf16[8,16]) -> bf16[64,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %async-collective-start = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) fusion(%x), kind=kCustom, calls=%started
  %fusion.1 = bf16[64,16]{1,0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.7
  %async-collective-done = bf16[64,16]{1,0} fusion(%x), kind=kCustom, calls=%ended
  ROOT %all-gather.4 = bf16[64,16]{1,0} all-gather(%x), channel_id=1, dimensions={0}
}
"""


def test_a_collective_in_pieces_counts_once():
    """Beside another of the same channel and shape."""
    found = summarize(IN_PIECES)
    assert found.sent == {"all-gather": 2 * 64 * 16 * 2} and found.counts == {"all-gather": 2}
