"""STS-B: how similar are two sentences, 0 to 5? By Pearson's correlation.

data.path: a folder of train, validation and test .jsonl with text, text_pair and label (a number).
By hub id: --config.data.source=hub --config.data.path=nyu-mll/glue:stsb
--config.data.columns.text=sentence1 --config.data.columns.text_pair=sentence2
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 5e-5, "head": 1e-2}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "regression")
    config.data.path = "data/stsb"  # fields text, text_pair, label
    config.data.max_length = 128
    config.data.batching = "pack"
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    config.train.epochs = 3
    config.train.batch_size = 32
    return config
