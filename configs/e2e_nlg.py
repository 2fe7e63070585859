"""Sentences from tables (E2E), from scratch: a small encoder-decoder, by BLEU and ROUGE.

data.path: a folder of .jsonl with source and target.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "seq2seq")
    config.model.path = "runs/models/e2e"
    config.model.new = ConfigDict(
        {
            "model_type": "t5",
            "tokenizer": "unigram",
            "vocab_size": 2000,
            "d_model": 256,
            "d_kv": 64,
            "d_ff": 1024,
            "num_heads": 4,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.1,
        }
    )
    config.data.path = "data/e2e_nlg"
    config.data.max_length = 64
    config.data.prepare = ()
    config.data.group = "source"  # which has several targets: none of validation is trained on
    config.optimizer.learning_rate = 1e-3
    config.train.epochs = 10
    config.train.batch_size = 64
    config.task.generate = 100
    return config
