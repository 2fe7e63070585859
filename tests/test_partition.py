"""Labels: total, first match wins, never silent."""

import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.partition import FROZEN, Partition, is_frozen, merge
from tests.models import random_models

PATHS = ["embeddings/word/embedding", "encoder/layers_0_3/ffn/up/kernel", "classifier/kernel"]
REST = (".*", FROZEN)


def test_first_match_wins_and_split_is_undone_by_merge():
    partition = Partition.of(PATHS, [("classifier/.*", "head"), (".*kernel", "body"), REST])
    assert [partition.labels[path] for path in PATHS] == [FROZEN, "body", "head"]
    params = {path: np.full(2, i) for i, path in enumerate(PATHS)}
    trainable, frozen = partition.split(params)
    assert set(trainable) == set(PATHS[1:]) and set(frozen) == {PATHS[0]}
    assert merge(trainable, frozen) == params
    assert partition.counts(params) == (4, 6)
    assert partition.groups == ("body", "head")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("classifier/.*", "head")], "embeddings/word/embedding"),  # not total
        ([("clasifier/.*", "head"), REST], "clasifier"),  # matches nothing
        ([REST], "trains no parameter"),
        ([("encoder/layer_1/.*", "body"), REST], "scanned"),  # a part of a scanned segment
    ],
)
def test_bad_rules_are_named(rules, message):
    with pytest.raises(UserError, match=message):
        Partition.of(PATHS, rules)


def test_patterns_see_unrolled_names():
    partition = Partition.of(PATHS, [("encoder/layer_[012]/.*", "body"), REST])
    assert partition.labels[PATHS[1]] == "body"


def test_a_buffer_is_trained_by_no_method():
    """As `final_logits_bias`, which transformers registers as a buffer."""
    for method in ("full", "lora"):
        model = build_tuned(
            random_models.config_of("bart"),
            methods.create({"name": method}),
            {},
            {"head": "seq2seq_lm"},
        )
        assert "logits/bias" in model.shapes and not model.partition.is_trainable("logits/bias")


def test_a_scanned_parameter_is_frozen_where_no_layer_trains():
    rules = (("encoder/layer_1/.*", "top"), ("classifier/.*", "head"), REST)
    assert is_frozen(rules, "encoder/layer_0/ffn/up/kernel") and is_frozen(rules, "words/embedding")
    assert not is_frozen(rules, "encoder/layer_1/ffn/up/kernel")
    assert is_frozen(rules, "encoder/layers_2_4/ffn/up/kernel")
    assert not is_frozen(rules, "encoder/layers_0_2/ffn/up/kernel")  # one of them trains
    assert not is_frozen(rules, "classifier/bias")
