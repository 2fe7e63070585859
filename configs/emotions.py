"""GoEmotions: any of 28 emotions in a comment.

data.path: a hub id, or a folder of .jsonl with text and label (a list of names).
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 1e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "multilabel")
    config.data.source = "hub"
    config.data.path = "google-research-datasets/go_emotions:simplified"
    config.data.columns.label = "labels"
    config.data.max_length = 64
    config.data.batching = "pack"
    config.train.epochs = 4
    config.train.batch_size = 32
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
