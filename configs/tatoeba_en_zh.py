"""English to Chinese from scratch: a small encoder-decoder on 20,080 short sentences.

data.path: a folder of train, validation and test .jsonl with source and target. A pretrained model:
--config.model.path=Helsinki-NLP/opus-mt-en-zh --config.model.new=
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "seq2seq")
    config.model.path = "runs/models/en_zh"
    config.model.new = ConfigDict(
        {
            "model_type": "marian",
            "tokenizer": "unigram",
            "vocab_size": 8000,
            "d_model": 256,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 1024,
            "decoder_ffn_dim": 1024,
            "max_position_embeddings": 64,
            "scale_embedding": True,
            "init_std": 0.06,  # 1 / √d_model: with the usual 0.02 it does not learn to read the source
            "dropout": 0.2,
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
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.train.epochs = 16
    config.train.batch_size = 64
    return config
