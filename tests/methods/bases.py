"""Folders of the small base models, and which methods compute alike."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from ftjax.formats.hf import mapping
from ftjax.testing.bases import BASES, plain_model, plain_params

# Methods whose forward passes are those of others: of selections, of LoRA and of adapters.
ALIKE = {"head", "top_k", "layer_norm", "regex", "gradual_unfreezing", "layerwise_lr_decay", "lisa"}
ALIKE |= {"bitfit", "galore", "adapter_drop", "scaled_parallel", "compacter_pp", "mam"}
ALIKE |= {"rslora", "lora_plus", "lora_fa", "olora"}
# And those that change projections or blocks within layers, token by token, as LoRA and Houlsby's
# adapters do: whatever is around layers sees no difference.
WITHIN = {"loha", "lokr", "oft", "pissa", "vera", "adalora", "compacter", "parallel", "pfeiffer"}


@cache
def folder(base: str) -> Path:
    """A folder of the base model, with random weights and without a head."""
    model, _ = plain_model(base)
    stored = {p: x for p, x in plain_params(base).items() if p.split("/")[0] != "classifier"}
    place = Path(mkdtemp(prefix=f"ftjax_{base}_"))
    config = {**BASES[base], "architectures": [model.names.model]}
    (place / "config.json").write_text(json.dumps(config))
    tensors = mapping.to_tensors(stored, model.names, prefix=False)
    mapping.write_folder(place, place, config, tensors)
    return place
