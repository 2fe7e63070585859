"""SMS spam: 13% of the messages are; by the mean F1 of both classes.

data.path: a folder of train, validation and test .jsonl with text and label. By hub id:
--config.data.source=hub --config.data.path=ucirvine/sms_spam --config.data.columns.text=sms
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 1e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.data.path = "data/sms_spam"
    config.data.max_length = 96
    config.data.batching = "pack"
    config.train.epochs = 3
    config.train.batch_size = 32
    config.train.best_metric = "f1"
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
