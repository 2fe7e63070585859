"""SemEval-2010 task 8: what relates the two entities in a sentence? By the official F1.

data.path: a folder of train and test .jsonl with text ("... <e1>a</e1> ... <e2>b</e2> ...") and
label. By hub id: --config.data.source=hub --config.data.path=SemEvalWorkshop/sem_eval_2010_task_8
--config.data.columns.text=sentence --config.data.columns.label=relation
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

LEARNING_RATES = {"full": 3e-4, "head": 1e-2, "top_k": 2e-4, "bitfit": 2e-3, "lora": 5e-3}


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method, "relation")
    config.data.path = "data/semeval2010_t8"
    config.data.max_length = 128
    config.data.batching = "pack"
    config.train.epochs = 5
    config.train.batch_size = 32
    config.optimizer.learning_rate = LEARNING_RATES.get(method, 1e-3)
    return config
