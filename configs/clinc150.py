"""CLINC150: which of 150 intents a sentence has, or none of them.

data.path: a folder of train, validation and test .jsonl with text and label. By hub id:
--config.data.source=hub --config.data.path=clinc/clinc_oos:small --config.data.columns.label=intent
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 3e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3, "lora": 5e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.data.path = "data/clinc150_small"
    config.data.max_length = 64
    config.data.batching = "pack"
    config.train.epochs = 15
    config.train.batch_size = 32
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
