"""DPO: the better of two answers of an assistant is made more probable.

data.path: a hub id, or a folder of .jsonl with chosen and rejected (texts after a prompt, or lists
of role and content).
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(method: str = "lora") -> ConfigDict:
    config = default_config(method, "preference")
    config.model.path = "smollm2"
    config.data.source = "hub"
    config.data.path = "trl-lib/ultrafeedback_binarized"
    config.data.max_length = 1024
    config.data.prepare = ()
    config.train.epochs = 1
    config.train.batch_size = 16
    config.optimizer.learning_rate = 5e-6 if method == "full" else 5e-5
    return config
