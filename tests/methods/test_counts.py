"""Parameter counts on BERT-base, as published."""

import pytest

from ftjax import methods
from ftjax.build import build_tuned
from tests.covering import product

BERT_BASE = {"model_type": "bert"}
HEAD = 768 * 2 + 2
POOLER = 768 * 768 + 768
LAYER = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768


COUNTS = [
    ({"name": "full"}, 109_482_240 + HEAD),
    ({"name": "head"}, POOLER + HEAD),
    ({"name": "head", "train_pooler": False}, HEAD),
    ({"name": "top_k", "k": 2}, 2 * LAYER + POOLER + HEAD),
    ({"name": "top_k", "k": -3}, 3 * LAYER + POOLER + HEAD),
    ({"name": "bitfit"}, 102_912 + HEAD),
    ({"name": "houlsby"}, 1_789_056 + HEAD),
    ({"name": "pfeiffer"}, 894_528 + HEAD),
    ({"name": "adapter_drop", "leave_out": (0, 1, 2)}, 894_528 * 9 // 12 + HEAD),
    ({"name": "adapter_fusion", "adapters": ("one", "other")}, 21_252_096 + HEAD),
    ({"name": "adapter_fusion"}, 21_252_096 + 2 * 894_528 + HEAD),
    ({"name": "reft"}, 36_888 // 2 + HEAD),
    ({"name": "reft", "last": 1}, 36_888 + HEAD),
    ({"name": "unipelt"}, 11_083_376 + HEAD),
    ({"name": "mam"}, 22_493_984 + HEAD),
    ({"name": "compacter"}, 57_088 + HEAD),
    ({"name": "compacter_pp"}, 28_576 + HEAD),
    ({"name": "parallel"}, 7_091_712 + HEAD),
    ({"name": "scaled_parallel"}, 7_091_712 + 12 + HEAD),
    ({"name": "lora"}, 12 * 2 * 8 * (768 + 768) + HEAD),
    ({"name": "lora", "rank": 4, "targets": "all-linear"},
     12 * 4 * (4 * 1536 + 2 * (768 + 3072)) + 4 * 1536 + HEAD),
    *[({"name": name}, 12 * 2 * 8 * (768 + 768) + HEAD)
      for name in ("rslora", "lora_plus", "pissa", "olora")],
    ({"name": "dora"}, 12 * 2 * (8 * (768 + 768) + 768) + HEAD),
    ({"name": "adalora"}, 12 * 2 * 12 * (768 + 768 + 1) + HEAD),
    ({"name": "lora_fa"}, 12 * 2 * 8 * 768 + HEAD),
    ({"name": "prompt_tuning", "length": 100}, 100 * 768 + HEAD),
    ({"name": "p_tuning", "length": 20}, 20 * 768 + 3 * (768 * 768 + 768) + HEAD),
    ({"name": "prefix_tuning", "length": 30}, 552_960 + HEAD),
    ({"name": "prefix_tuning", "length": 30, "projection": 512}, 9_872_384 + HEAD),
]  # fmt: skip
UNROLLED = ("full", "top_k", "adapter_drop", "lora")  # one of each kind
CASES = [(number, segments) for number in range(len(COUNTS)) for segments in ("scan", "unrolled")]
FEW = [case for case in CASES if case[1] == "scan" or COUNTS[case[0]][0]["name"] in UNROLLED]


@pytest.mark.parametrize(("number", "segments"), product(CASES, FEW))
def test_bert_base(number, segments):
    settings, count = COUNTS[number]
    head = {"head": "classification", "labels": 2, "pooling": "cls"}
    model = build_tuned(BERT_BASE, methods.create(settings), {"segments": segments}, head)
    assert model.partition.counts(model.shapes)[0] == count
