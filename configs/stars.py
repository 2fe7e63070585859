"""Yelp reviews: how many stars, one to five, as labels that have an order.

data.path: a hub id, or a folder of .jsonl with text and label.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 5e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "ordinal")
    config.data.source = "hub"
    config.data.path = "Yelp/yelp_review_full"
    config.data.max_length = 256
    config.data.batching = "pack"
    config.data.splits.train = 20_000
    config.data.splits.validation = 1_000
    config.train.epochs = 2
    config.train.batch_size = 32
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
