"""BUSTM: do two Chinese questions ask the same? Few shots.

data.path: a folder of train and validation .jsonl with sentence1, sentence2 and label.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 3e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.model.path = "google-bert/bert-base-chinese"
    config.data.path = "data/fewclue_bustm"
    config.data.max_length = 64
    config.data.batching = "pack"
    config.train.epochs = 10
    config.train.batch_size = 32
    config.data.columns.text = "sentence1"
    config.data.columns.text_pair = "sentence2"
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
