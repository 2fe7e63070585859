"""What is drawn for examples is uniform, and theirs alone."""

import numpy as np
from scipy import stats

from ftjax.data.draws import Draws, ranks, within


def test_draws_are_uniform_and_of_each_example():
    sizes = np.array([3, 0, 5000, 1, 7])
    draws = Draws.of((4, 2), 5)
    found = draws.uniform(sizes, 0)
    parts = np.split(found, np.cumsum(sizes)[:-1])
    alone = Draws((4, 2), np.array([2])).uniform(sizes[2:3], 0)
    np.testing.assert_array_equal(parts[2], alone)  # whatever others are drawn with it
    assert stats.kstest(found, "uniform").pvalue > 0.01
    first = Draws.of((0,), 5000).uniform(np.ones(5000, int), 1)  # of each example, not in each
    assert stats.kstest(first, "uniform").pvalue > 0.01
    for other in (draws.uniform(sizes, 1), Draws.of((4, 3), 5).uniform(sizes, 0)):
        assert abs(np.corrcoef(found, other)[0, 1]) < 0.06
    assert abs(np.corrcoef(alone[1:], alone[:-1])[0, 1]) < 0.06


def test_ranks_are_an_order_of_each_example():
    sizes, draws = np.array([4, 0, 6, 1]), Draws.of((1,), 4)
    later = np.array([0, 3, 0, 0, 1, 1, 0, 2, 0, 0, 0])
    found = np.split(ranks(sizes, draws.bits(sizes, 0), later), np.cumsum(sizes)[:-1])
    assert [sorted(each) for each in found] == [list(range(n)) for n in sizes]
    assert found[0][1] == 3 and found[2][3] == 5 and {*found[2][:2]} == {3, 4}
    assert within(sizes).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0]
    firsts = ranks(np.full(3000, 3), Draws.of((2,), 3000).bits(np.full(3000, 3), 0), np.zeros(9000))
    counts = np.unique(firsts.reshape(-1, 3), axis=0, return_counts=True)[1]
    assert stats.chisquare(counts).pvalue > 0.01 and len(counts) == 6  # each order as often


def test_ranks_of_millions_of_examples():
    sizes, more = np.array([4, 6, 1]), np.array([2, 5])
    few, last = (Draws.of((1,), len(each)).bits(each, 0) for each in (sizes, more))
    found = ranks(
        np.concatenate([sizes, np.zeros(2**21, int), more]),
        np.concatenate([few, last]),
        np.zeros(18, np.int64),
    )
    alone = ranks(sizes, few, np.zeros(11)), ranks(more, last, np.zeros(7))
    np.testing.assert_array_equal(found, np.concatenate(alone))
