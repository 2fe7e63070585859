"""Modules of sentence-transformers: what comes after a plain encoder, in its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ftjax.formats.jsons import read_json, write_json
from ftjax.formats.tokenizer_files import copy_files
from ftjax.tuned import Tuned

POOLING, HEAD, NORMALIZE = "1_Pooling", "2_Dense", "2_Normalize"
SETTINGS = "config_sentence_transformers.json"


def plain_encoder(tuned: Tuned) -> bool:
    """Whether `transformers` has the model's encoder alone: no such head."""
    return tuned.model.pooling == "mean" or tuned.model.head == "embedding"


def described(tuned: Tuned) -> str:
    """What an adapter's README says of what comes after the encoder."""
    pooling = tuned.model.pooling
    if tuned.model.head == "embedding":
        return f"Embeddings of texts by {pooling} pooling, of length 1."
    return f"Mean pooling; the head is the Dense module in `{HEAD}`."


def labels_of(names: tuple[str, ...]) -> dict[str, Any]:
    """What config.json says of a classifier's outputs."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def write_modules(
    output: Path, source: Path, tuned: Tuned, head: Mapping[str, np.ndarray], names: tuple[str, ...]
) -> None:
    """Writes all modules after an encoder, and how the library puts them together.

    Args:
        output: the encoder's folder.
        source: of the base model.
        tuned: the model.
        head: its head's parameters.
        names: of a classifier's outputs.
    """
    write_pooling(output, tuned)
    kinds = [("", "Transformer"), (POOLING, "Pooling")]
    if tuned.model.head == "embedding":
        (output / NORMALIZE).mkdir(exist_ok=True)
        write_json(output / NORMALIZE / "config.json", {})
        kinds.append((NORMALIZE, "Normalize"))
    else:
        write_dense(output, head, labels_of(names))
        kinds.append((HEAD, "Dense"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write_json(output / "modules.json", modules)
    if not source.is_dir():
        return
    copy_files(source, output, ("sentence_bert_config.json",))
    if (source / SETTINGS).exists():  # texts are trained on as they are, without a prompt before
        write_json(output / SETTINGS, {**read_json(source / SETTINGS), "default_prompt_name": None})


def write_pooling(output: Path, tuned: Tuned) -> None:
    """Which tokens' vectors the library reads. XLNet's texts end with the token for the whole."""
    mean, last = tuned.model.pooling == "mean", tuned.family.MODEL == "XLNetModel"
    pooling = {
        "word_embedding_dimension": tuned.config.hidden_size,
        "pooling_mode_mean_tokens": mean,
        "pooling_mode_cls_token": not mean and not last,
        "pooling_mode_lasttoken": not mean and last,
        "pooling_mode_max_tokens": False,
    }
    (output / POOLING).mkdir(parents=True, exist_ok=True)
    write_json(output / POOLING / "config.json", pooling)


def write_dense(output: Path, head: Mapping[str, np.ndarray], labels: Mapping[str, Any]) -> None:
    """A classifier as a Dense module without activation."""
    width, count = head["classifier/kernel"].shape
    (output / HEAD).mkdir(exist_ok=True)
    dense = {"in_features": width, "out_features": count, "bias": True, **labels}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    write_json(output / HEAD / "config.json", dense)
    linear = {"weight": head["classifier/kernel"].T, "bias": head["classifier/bias"]}
    linear = {f"linear.{n}": np.ascontiguousarray(x, np.float32) for n, x in linear.items()}
    save_file(linear, output / HEAD / "model.safetensors", metadata={"format": "pt"})
