"""SST-2: sentiment of sentences.

data.path: a folder of train, validation and test .jsonl with text and label. By hub id:
--config.data.source=hub --config.data.path=nyu-mll/glue:sst2 --config.data.columns.text=sentence
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 5e-5, "head": 1e-2, "top_k": 1e-4, "bitfit": 2e-3, "lora": 5e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.data.path = "data/sst2"
    config.data.max_length = 128
    config.data.batching = "pack"
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    config.train.epochs = 3
    config.train.batch_size = 32
    if method == "prompting":
        config.method.words = ("bad", "good")
        config.method.templates = ("{label}", "It was {label}.", "A {label} movie.")
    return config
