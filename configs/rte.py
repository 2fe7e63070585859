"""RTE: does a sentence follow from another?

data.path: a folder of train and validation .jsonl with text, text_pair and label. By hub id:
--config.data.source=hub --config.data.path=nyu-mll/glue:rte
--config.data.columns.text=sentence1 --config.data.columns.text_pair=sentence2
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 1e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.data.path = "data/rte"
    config.data.max_length = 256
    config.data.batching = "pack"
    config.train.epochs = 5
    config.train.batch_size = 32
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
