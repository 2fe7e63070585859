"""Every method that trains an encoder, on 2,000 sentences of SST-2, with MiniLM.

ftjax compare --config configs/compare_sst2.py --seeds 3 --jobs 2 --workdir runs/compare_sst2
data.path: a folder with train, validation and test .jsonl (text, label). Two runs go side by
side, each on half of the cores. A run that is finished is not run again, so that the study can be
left and gone on with by the same command.
"""

from ml_collections import ConfigDict

from ftjax.config import default_config

# Learning rates tried on validation: a default rate is what misleads most in such tables.
LOW, MIDDLE, UPPER, HIGH, HIGHEST = (
    (3e-5, 1e-4, 3e-4),
    (5e-4, 1.5e-3, 5e-3),
    (1.5e-3, 5e-3, 1.5e-2),
    (3e-3, 1e-2, 3e-2),
    (1e-2, 3e-2, 1e-1),
)
GRID = {
    **dict.fromkeys(("full", "gradual_unfreezing"), LOW),
    # GaLore quarters its updates; the others train some layers only, or lower ones more slowly.
    **dict.fromkeys(("galore", "layerwise_lr_decay", "lisa", "top_k"), (1e-4, 3e-4, 1e-3)),
    **dict.fromkeys(("bitfit", "layer_norm", "lora_fa", "adalora", "loha", "lokr"), UPPER),
    **dict.fromkeys(("lora", "rslora", "dora", "pissa", "olora", "qlora"), MIDDLE),
    **dict.fromkeys(("lora_plus",), (1e-4, 3e-4, 1e-3)),  # of A; B's is 16 times that
    **dict.fromkeys(("oft", "houlsby", "pfeiffer", "parallel", "scaled_parallel"), MIDDLE),
    **dict.fromkeys(("compacter", "compacter_pp", "reft"), UPPER),
    **dict.fromkeys(("adapter_drop", "adapter_fusion", "mam", "unipelt"), MIDDLE),
    **dict.fromkeys(("head", "vera", "ia3", "prefix_tuning"), HIGH),
    **dict.fromkeys(("prompt_tuning", "p_tuning"), HIGHEST),
}
METHODS = tuple(GRID)


def get_config(method: str = "full") -> ConfigDict:
    config = default_config(method)
    config.data.path = "data/sst2"
    config.data.splits.train = 2000
    config.data.max_length = 64
    config.data.batching = "pack"
    config.data.buckets = 1
    config.optimizer.learning_rate = GRID.get(method, LOW)[1]
    config.train.epochs = 3
    config.train.batch_size = 32
    if method == "gradual_unfreezing":
        config.method.every = 20
    if method == "unipelt":
        config.data.batching = "pad"  # its gates take a row for one example
    if method == "galore":
        config.method.every = 50
    return config
