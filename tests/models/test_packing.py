"""Packed examples give what each gives alone, in every family that takes packed rows."""

import numpy as np
import pytest

from tests.models.cases import CASES
from tests.models.random_models import (
    LABELS,
    build,
    by_layers,
    difference,
    heads_of,
    kind_of,
    parameters,
    quick,
)

LENGTHS = ((7, 4, 4), (4, 7))  # of the examples of each row; longer than the cases' windows
ROW = 18
ONE_STACK = [case for case in CASES if kind_of(case) != "encoder-decoder"]


def examples(types: int) -> list[list[dict[str, np.ndarray]]]:
    """By row, the inputs of each example alone."""
    random = np.random.default_rng(0)

    def one(length: int) -> dict[str, np.ndarray]:
        kinds = np.minimum(np.arange(length) // 3, types - 1)
        ids = random.integers(4, 64, length)
        return {"input_ids": ids[None], "token_type_ids": kinds[None]}

    return [[one(length) for length in row] for row in LENGTHS]


def packed(rows: list[list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The examples of each row after one another; what pads the row's end looks like tokens."""
    batch = {
        "input_ids": np.full((len(rows), ROW), 9),
        "token_type_ids": np.zeros((len(rows), ROW), int),
        "position_ids": np.zeros((len(rows), ROW), int),
        "segment_ids": np.zeros((len(rows), ROW), int),
        "starts": np.zeros((len(rows), max(map(len, rows))), int),
    }
    for row, parts in enumerate(rows):
        start = 0
        for number, part in enumerate(parts):
            length = part["input_ids"].shape[1]
            here = (row, slice(start, start + length))
            for name, value in part.items():
                batch[name][here] = value[0]
            batch["position_ids"][here] = np.arange(length)
            batch["segment_ids"][here] = number + 1
            batch["starts"][row, number] = start
            start += length
    return batch


@pytest.mark.parametrize("case", by_layers(ONE_STACK))
def test_packed_examples_equal_each_alone(case, parity):
    heads = {"none": build(case, None)}
    if "classification" in heads_of(case):
        heads["classification"] = build(case, "classification")
    if kind_of(case) == "encoder":
        heads["mean"] = build(case, "classification", pooling="mean")
    params = {path: leaf for model in heads.values() for path, leaf in parameters(model).items()}

    @quick  # the heads at once: they share what is below
    def run(batch):
        outputs = {}
        for head, model in heads.items():
            own = {path: leaf for path, leaf in params.items() if path in model.shapes}
            outputs[head] = model.apply(own, batch)
        return outputs

    rows = examples(getattr(heads["none"].config, "type_vocab_size", 2) or 1)
    batch = packed(rows)
    together = run(batch)
    wanted, found = ({head: [] for head in heads} for _ in range(2))
    for row, parts in enumerate(rows):
        for number, part in enumerate(parts):
            for head, out in run(part).items():
                wanted[head].append(out[0])
                here = batch["segment_ids"][row] == number + 1 if head == "none" else number
                found[head].append(together[head][row, here])
    for head in heads:
        assert found[head][0].shape[-1] == (
            heads[head].config.hidden_size if head == "none" else LABELS
        )
        error = difference(np.concatenate(found[head]), np.concatenate(wanted[head]))
        parity.record(
            case, "classification" if head == "mean" else head, "packed", error, limit=1e-5
        )
