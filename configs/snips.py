"""SNIPS: the intent of a sentence and the slots in it, both by one model.

data.path: a folder of train, validation and test .jsonl with tokens, tags (BIO) and label.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 5e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3, "lora": 5e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "token_classification")
    config.data.path = "data/snips"
    config.data.max_length = 64
    config.data.batching = "pack"
    config.train.epochs = 5
    config.train.batch_size = 32
    config.data.prepare = ()
    config.train.best_metric = "exact"
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
