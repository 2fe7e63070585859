"""English to Chinese from scratch: a small encoder-decoder on 20,080 short sentences.

data.path: a folder of train, validation and test .jsonl with source and target. By hub id:
--config.data.source=hub --config.data.path=Helsinki-NLP/opus-100:en-zh
--config.data.columns.source=translation.en --config.data.columns.target=translation.zh
A pretrained model:
--config.model.path=Helsinki-NLP/opus-mt-en-zh --config.model.new=
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "seq2seq")
    config.model.path = "runs/models/en_zh"
    config.model.new = ConfigDict(
        {
            "model_type": "t5",
            "tokenizer": "unigram",
            "vocab_size": 8000,
            "d_model": 256,
            "d_kv": 64,
            "d_ff": 1024,
            "num_heads": 4,
            "num_layers": 4,
            "num_decoder_layers": 4,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.1,
        }
    )
    config.task.tokenize = "zh"
    config.task.label_smoothing = 0.1
    config.task.max_target = 48
    config.task.max_new_tokens = 48
    config.task.num_beams = 4
    config.data.path = "data/tatoeba_en_zh"
    config.data.max_length = 48
    config.data.prepare = ()
    config.optimizer.name = "adafactor"  # by the size of parameters: T5's embeddings are large
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule = "cosine"
    config.train.epochs = 15
    config.train.batch_size = 64
    return config
