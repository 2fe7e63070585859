"""MRPC: are two sentences paraphrases?

data.path: a folder of train, validation and test .jsonl with text, text_pair and label.
By hub id: --config.data.source=hub --config.data.path=nyu-mll/glue:mrpc
--config.data.columns.text=sentence1 --config.data.columns.text_pair=sentence2
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 1e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3, "lora": 5e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.data.path = "data/mrpc"  # fields text, text_pair, label
    config.data.max_length = 128
    config.data.batching = "pack"
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    config.train.epochs = 3
    config.train.batch_size = 32
    config.train.best_metric = "f1"
    return config
