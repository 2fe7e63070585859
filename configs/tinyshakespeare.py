"""A GPT from scratch on characters of Shakespeare: loss is that of a character, in nats.

data.path: a text file.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "causal_lm")
    config.data.path = "data/tinyshakespeare/input.txt"
    config.data.source = "text"
    config.data.text_rows = "paragraph"
    config.data.max_length = config.task.block = 128
    config.data.splits.validation = 0.05
    config.data.prepare = ()
    config.model.path = "runs/models/shakespeare"
    config.model.new = ConfigDict(
        {
            "model_type": "gpt2",
            "tokenizer": "characters",
            "n_embd": 192,
            "n_layer": 4,
            "n_head": 6,
            "n_positions": 128,
            "resid_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "attn_pdrop": 0.1,
        }
    )
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.weight_decay = 0.1
    config.train.steps = 1800
    config.train.batch_size = 32
    config.train.eval_every = 300
    config.train.log_every = 100
    return config
