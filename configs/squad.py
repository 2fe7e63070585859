"""SQuAD 2.0: the part of a text that answers a question, or none.

data.path: a hub id, or a folder of train and validation .json of SQuAD's form with
--config.data.source=auto.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 5e-5, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "span_qa")
    config.model.path = "google-bert/bert-base-uncased"
    config.task.impossible = True
    config.task.stride = 128
    config.data.source = "hub"
    config.data.path = "rajpurkar/squad_v2"
    config.data.max_length = 384
    config.data.prepare = ()
    config.train.epochs = 2
    config.train.batch_size = 32
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
