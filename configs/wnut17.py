"""WNUT 17: named entities in noisy texts; by the F1 of entities.

data.path: a folder of train, validation and test .jsonl with tokens and tags (BIO). By hub id:
--config.data.source=hub --config.data.path=leondz/wnut_17 --config.data.columns.tags=ner_tags
CoNLL files: a folder of them, as train.conll.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 5e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3, "lora": 5e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "token_classification")
    config.data.path = "data/wnut17"
    config.data.max_length = 128
    config.data.batching = "pack"
    config.train.epochs = 8
    config.train.batch_size = 32
    config.data.prepare = ()
    config.data.batching = "pack"
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
