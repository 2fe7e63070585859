"""What reads a work folder runs batches of the shapes that its run had."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from ftjax.data.planning import Layout
from ftjax.workdir.layouts import NAME, keep_layout, kept_layout


def of_lengths(*lengths, written=None):
    decoder = None if written is None else SimpleNamespace(lengths=np.array(written))
    return SimpleNamespace(lengths=np.array(lengths), decoder=decoder)


def test_shapes_are_kept_for_examples_that_fit(tmp_path):
    buckets, packed = Layout((16, 32)), Layout((48,), rows=(4,), places=6, multiple=2)
    pairs = Layout((16, 32), written=(8, 16))
    for layout, examples, size, ways, wanted in (
        (buckets, of_lengths(3, 32), 8, 1, buckets),
        (buckets, of_lengths(3, 33), 8, 1, None),
        (pairs, of_lengths(3, 32, written=(16, 2)), 8, 1, pairs),
        (pairs, of_lengths(3, 32, written=(17, 2)), 8, 1, None),
        (packed, of_lengths(40), 8, 2, packed),
        (packed, of_lengths(40), 16, 1, packed.scaled(2)),
        (packed, of_lengths(40), 8, 4, None),
    ):
        keep_layout(tmp_path, layout, 8)
        assert kept_layout(tmp_path, examples, size, ways) == wanted


@pytest.mark.parametrize("text", [None, "", "null", "[]", "{}", '{"batch_size": 8}'])
def test_without_them_others_are_chosen(tmp_path, text):
    if text is not None:
        (tmp_path / NAME).write_text(text)
    assert kept_layout(tmp_path, of_lengths(3), 8, 1) is None
    whole = {"batch_size": 8, **asdict(Layout((16,)))}
    for name in whole:
        for bad in ("x", -1, {"a": 1}):
            changed = {**whole, name: bad}
            (tmp_path / NAME).write_text(json.dumps(changed))
            found = kept_layout(tmp_path, of_lengths(3), 8, 1)
            assert found is None or max(found.lengths) == 16
