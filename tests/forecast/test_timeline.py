"""The time model, against sums by hand of small schedules."""

from types import SimpleNamespace

import numpy as np
import pytest

from ftjax.forecast.chips import CHIPS, closed
from ftjax.forecast.estimates import REACHED
from ftjax.forecast.groups import first_group
from ftjax.forecast.hlo import summarize
from ftjax.forecast.interconnect import HOP, Torus
from ftjax.forecast.timeline import Machine, timeline

V5E, V5P = CHIPS["v5e"], CHIPS["v5p"]
SIDE = 4096


def torus(chip, topology):
    sizes = [int(n) for n in topology.partition(":")[2].split("x")]
    places = np.array([(*place, 0, 0)[:3] for place in np.ndindex(*sizes)])
    return Torus(places, closed(topology), chip.link)


def matmul(name, cycles):
    return (
        f"%{name} = bf16[{SIDE},{SIDE}]{{1,0}} fusion(%p), calls=%f, "
        f'backend_config={{"estimated_cycles":"{cycles}"}}'
    )


def module(*lines):
    body = "\n".join(f"  {line}" for line in lines)
    return (
        "HloModule m, is_scheduled=true\n"
        f"%f (x: bf16[{SIDE},{SIDE}]) -> bf16[{SIDE},{SIDE}] {{\n"
        f"  %x = bf16[{SIDE},{SIDE}]{{1,0}} parameter(0)\n"
        f"  ROOT %y = bf16[{SIDE},{SIDE}]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}\n}}\n"
        f"ENTRY %main (p: bf16[{SIDE},{SIDE}]) -> bf16[{SIDE},{SIDE}] {{\n"
        f"  %p = bf16[{SIDE},{SIDE}]{{1,0}} parameter(0)\n{body}\n}}\n"
    )


GATHERED = f"bf16[{SIDE},{SIDE}]{{1,0}}"
START = (
    f"%s = (bf16[64,{SIDE}]{{1,0}}, {GATHERED}) all-gather-start(%p), replica_groups=[1,64]<=[64]"
)
DONE = f"%d = {GATHERED} all-gather-done(%s)"
BYTES = 2 * SIDE * SIDE
# Over the open 8 by 8 mesh a corner has two links, one in each dimension.
GATHER = BYTES * 63 / 64 / (2 * V5E.link) + HOP * 16


@pytest.mark.parametrize(
    ("before", "between", "waits"),
    [
        (0, 300_000, GATHER - 300_000 / V5E.clock),  # covered in part
        (300_000, 0, GATHER),  # what comes before covers nothing
        (0, 3_000_000, 0.0),  # covered whole
    ],
)
def test_a_collective_waits_for_what_no_computation_covers(before, between, waits):
    lines = [matmul("a", before), START, matmul("b", between), DONE]
    times = timeline(module(*lines), Machine(V5E, torus(V5E, "v5e:8x8")))
    assert times.waiting == pytest.approx(waits)
    assert times.computing == pytest.approx((before + between) / V5E.clock)
    assert times.seconds == pytest.approx(times.waiting + times.computing)
    assert (times.sent, times.overlapped) == (BYTES, BYTES * bool(between))


# What a sparse core sends, as libtpu 0.0.42 writes it and as 0.0.52 does.
CALLED = f"""%sent (a: bf16[64,{SIDE}]) -> {GATHERED[:-5]} {{
  %a = bf16[64,{SIDE}]{{1,0}} parameter(0)
  ROOT %g = {GATHERED} all-gather(%a), replica_groups=mesh['a'=64] {{'a'}}, dimensions={{0}}
}}, execution_thread="sparsecore"
"""
TOKEN = f"((bf16[64,{SIDE}]{{1,0}}, token[]), {GATHERED})"
BUFFERS = "(s32[8192]{0:T(1024)}, s32[61]{0:T(1)S(11)})"
SPARSE = {
    "one line": (
        f"%s = {TOKEN} call-start(%p, %t), to_apply=%sent",
        f"%d = {GATHERED} call-done(%s)",
    ),
    "two lines": (
        f"%b = ((), (), {BUFFERS}) custom-call-start(), called_computations={{%sent}}\n"
        f"  %s = ((bf16[64,{SIDE}]{{1,0}}), {GATHERED}, {BUFFERS}) custom-call-update(%b, %p)",
        f"%d = {GATHERED} custom-call-done(%s)",
    ),
}


@pytest.mark.parametrize("written", SPARSE)
def test_sparse_cores_send_while_the_others_compute(written):
    start, done = SPARSE[written]
    text = module(start, matmul("m", 300_000), done).replace("ENTRY", f"{CALLED}\nENTRY")
    found = timeline(text, Machine(V5E, torus(V5E, "v5e:8x8")))
    covered = 300_000 / V5E.clock
    assert found.seconds == pytest.approx(GATHER) and found.computing == pytest.approx(covered)
    assert found.sent == found.overlapped == BYTES
    assert summarize(text).sent == {"all-gather": BYTES}


def test_collectives_go_one_after_another():
    second = START.replace("%s", "%s2"), DONE.replace("%d", "%d2").replace("%s", "%s2")
    lines = [START, second[0], matmul("a", 100), DONE, second[1]]
    times = timeline(module(*lines), Machine(V5E, torus(V5E, "v5e:8x8")))
    assert times.seconds == pytest.approx(2 * GATHER)


def test_loops_take_their_body_as_often_as_they_run():
    text = module("%w = bf16[1]{0} while(%p), condition=%c, body=%b, "
                  'backend_config={"known_trip_count":{"n":"5"}}')  # fmt: skip
    loop = f"%b (q: bf16[1]) -> bf16[1] {{\n  {matmul('a', 1000)}\n}}\n"
    text = text.replace("ENTRY", loop + "%c (q: bf16[1]) -> pred[] {\n}\nENTRY")
    times = timeline(text, Machine(V5E, torus(V5E, "v5e:8x8")))
    assert times.seconds == pytest.approx(5 * 1000 / V5E.clock)


@pytest.mark.parametrize(
    ("chip", "topology", "groups", "share"),
    [
        (V5E, "v5e:16x16", "[1,256]<=[256]", 255 / 256 / 4),  # closed: both sides, two dimensions
        (V5E, "v5e:8x8", "[8,8]<=[64]", 7 / 8),  # one open line
        (V5E, "v5e:8x8", "[8,8]<=[8,8]T(1,0)", 7 / 8),  # the other
        (V5P, "v5p:4x4x4", "[1,64]<=[64]", 63 / 64 / 6),
        (V5P, "v5p:2x2x4", "[1,16]<=[16]", 15 / 16 / 3),  # no whole cube: open
        (V5E, "v5e:8x8", "{{0,2,4,6},{1,3,5,7}}", 3 / 4 * 2),  # links shared with the group between
    ],
)
def test_links_that_a_gather_is_received_by(chip, topology, groups, share):
    place = torus(chip, topology)
    took = place.seconds("all-gather", 1e12, f"replica_groups={groups}")
    assert took == pytest.approx(1e12 * share / chip.link, rel=1e-3)
    assert place.seconds("all-reduce", 1e12, f"replica_groups={groups}") == pytest.approx(2 * took)


# In the bytes that a bfloat16 array of SIDE by SIDE is read or written in, twice as many cycles.
MOVED = 2 * BYTES / (REACHED * V5E.bandwidth)


@pytest.mark.parametrize(
    ("opcode", "cycles", "seconds"),
    [
        ("copy", 2 * MOVED * V5E.clock, MOVED),  # as if elements had 32 bits
        ("copy", 6 * MOVED * V5E.clock, 3 * MOVED),  # by another way through memory, too
        ("exponential", 2 * MOVED * V5E.clock, MOVED),
        ("exponential", 3 * MOVED * V5E.clock, 3 * MOVED),  # more than memory: it computes
        ("copy", 0.5 * MOVED * V5E.clock, 0.5 * MOVED),
    ],
)
def test_what_moves_narrow_elements_takes_their_bytes(opcode, cycles, seconds):
    text = module(f"%c = {GATHERED} {opcode}(%p), "
                  f'backend_config={{"estimated_cycles":"{int(cycles)}"}}')  # fmt: skip
    times = timeline(text, Machine(V5E, torus(V5E, "v5e:8x8")))
    assert times.seconds == pytest.approx(seconds, rel=1e-4)
    wide = timeline(text.replace("bf16", "f32"), Machine(V5E, torus(V5E, "v5e:8x8")))
    assert wide.seconds == pytest.approx(cycles / V5E.clock, rel=1e-4)


def test_groups_are_read_as_they_are_written():
    assert first_group("replica_groups={{0,8},{1,9}}") == (0, 8)
    assert first_group("replica_groups=[2,2]<=[2,2]T(1,0)") == (0, 2)
    assert first_group("replica_groups=mesh['a'=2,'b'=3] {'a'}") == (0, 3)
    assert first_group("") == ()


def test_attention_by_its_blocks():
    """Causal: of four by four blocks ten are visited, four products each in the gradients."""
    from ftjax.forecast.hlo import Instruction
    from ftjax.forecast.kernels import BLOCK_START, splash_seconds

    target = '), custom_call_target="tpu_custom_call"'
    read = (("bf16", (2, 4096, 128)), ("bf16", (2, 4096, 128)))
    shapes = (("f32", (1024, 128)), ("bf16", (2, 4096, 128)))
    line = Instruction("splash_mha_dkv_no_residuals.3", shapes, (0, 0), "custom-call", (), target)
    products = 4 * 2 * 1024 * 1024 * 128 / V5E.flops
    assert splash_seconds(V5E, line, read) == pytest.approx(2 * 10 * (products + BLOCK_START))
    fused = SimpleNamespace(**vars(line) | {"shapes": (*shapes, ("bf16", (4, 2, 4096, 128)))})
    products *= 5 / 4  # scores are computed once for all gradients
    assert splash_seconds(V5E, fused, read) == pytest.approx(2 * 10 * (products + BLOCK_START))
