"""scripts/benchmark_gpu.py at a size for CPUs: both sides train alike, and work by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import seeing

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_gpu
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products are no sooner done by more
    yield benchmark_gpu
    torch.set_num_threads(threads)
    for name in ("benchmark_gpu", "benchmark_gpu_peer"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "method"), [("llama", "lora"), ("bert", "full")])
def test_both_sides_lose_alike_on_packed_rows(bench, name, method, tmp_path):
    import benchmark_gpu_peer

    workload = next(each for each in bench.workloads(toy=True) if each.name == name)
    benchmark_gpu_peer.write_model(workload, tmp_path)
    with seeing(1):
        ours = bench.ours(workload, method, tmp_path, 0.0)
    theirs = benchmark_gpu_peer.peer(workload, method, tmp_path, 0.0, compiled=False)
    assert ours["trainable"] == theirs["trainable"]
    assert len(ours["losses"]) == bench.FIRST
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-3)
    assert ours["losses"][-1] < ours["losses"][0] - 5e-3  # and they go down
    sides = {"ftjax": ours, "transformers": theirs}
    said = " ".join(bench.compared(sides))
    assert "times the peer's best speed" in said and "losses of the first 20 steps" in said


def test_rows_hold_examples_end_to_end(bench):
    for workload in bench.workloads(toy=False):
        batch = bench.batch_of(workload, 0)
        segments, positions = batch["segment_ids"], batch["position_ids"]
        new = np.diff(segments, axis=1, prepend=0) != 0
        assert (positions[new] == 0).all() and (positions[~new & (segments > 0)] > 0).all()
        assert (segments > 0).mean() > 0.7 and batch["weights"].sum(1).min() >= 2
        if workload.task == "masked_lm":
            assert not batch["masked"][segments == 0].any()
            assert (batch["input_ids"] == batch["originals"])[batch["masked"] == 0].all()


def test_work_counts_pairs_of_one_example(bench, monkeypatch, tmp_path):
    """A row that is one example sees all before itself; of halves, each sees half as many."""
    workload = replace(bench.workloads(toy=True)[0], rows=1, length=48)
    import benchmark_gpu_peer

    benchmark_gpu_peer.write_model(workload, tmp_path)
    found = []
    for parts in (1, 2):
        segments = np.repeat(np.arange(1, parts + 1), 48 // parts)[None]
        monkeypatch.setattr(bench, "batch_of", lambda *_, s=segments: {"segment_ids": s})
        found.append(bench.needed_flops(workload, "full", tmp_path))
    scores = 2 * 4 * 16  # of a pair, in each of four heads of 16
    pairs = 48 * 49 / 2 - 2 * (24 * 25 / 2)
    assert found[0] - found[1] == pytest.approx(6 * 2 * scores * pairs)  # products of two layers
