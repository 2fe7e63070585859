"""ChnSentiCorp: sentiment of Chinese hotel reviews.

data.path: a folder of train, validation and test .jsonl with text and label. By hub id:
--config.data.source=hub --config.data.path=lansinuote/ChnSentiCorp
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 3e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.model.path = "google-bert/bert-base-chinese"
    config.data.path = "data/chnsenticorp"
    config.data.max_length = 256
    config.data.batching = "pack"
    config.train.epochs = 3
    config.train.batch_size = 32
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
