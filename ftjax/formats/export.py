"""A tuned model as a Hugging Face folder or an adapter folder."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from ftjax.errors import UserError
from ftjax.formats import hf, peft
from ftjax.formats.adapterhub import export_adapterhub
from ftjax.formats.folder import open_weights, read_config
from ftjax.formats.vocabulary import sized
from ftjax.paths import Flat
from ftjax.tuned import Tuned

# sentence-transformers' modules of a mean-pooling classifier, beside the plain encoder.
POOLING, HEAD = "1_Pooling", "2_Dense"


def export_hf(
    output: Path,
    source: Path,
    tuned: Tuned,
    params: Flat,
    names: tuple[str, ...],
    problem: str | None = "single_label_classification",
) -> None:
    """Writes the merged model, as `transformers` calls the family's model with this head.

    `transformers` has no mean-pooling BERT classifier, so with pooling "mean" the folder is the
    plain encoder, and sentence-transformers' modules add pooling and head.

    Args:
        names: of the outputs of a classifier.
        problem: a classifier's `problem_type`; None for other heads.

    Raises:
        UserError: the method cannot be merged.
    """
    plain = tuned.merged(jax.tree.map(np.asarray, params))
    config = {**sized(read_config(source), tuned.config.vocab_size), "dtype": "float32"}
    config.pop("torch_dtype", None)
    labels = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if tuned.model.pooling != "mean":
        head = tuned.config.heads[tuned.model.head]
        config |= {"architectures": [head.architecture]}
        config |= {**labels, "problem_type": problem} if problem else {}
        tensors = hf.to_tensors(plain, tuned.names, prefix=True)
        hf.write_folder(output, source, config, _float32(tensors))
        return
    encoder, head = _split_head(tuned, plain)
    tensors = hf.to_tensors(encoder, tuned.names, prefix=False)
    base = open_weights(source)
    prefix = f"{tuned.family.HF_PREFIX}."
    for name in base:  # parts that this classifier leaves out, so that nothing is missing
        bare = name.removeprefix(prefix)
        if bare.rsplit(".", 1)[0] in tuned.base.names.values() and bare not in tensors:
            tensors[bare] = np.asarray(base[name])
    config["architectures"] = [tuned.family.MODEL]
    hf.write_folder(output, source, config, _float32(tensors))
    _write_dense(output, source, head, labels)


def _write_dense(
    output: Path, source: Path, head: Mapping[str, np.ndarray], labels: Mapping[str, Any]
) -> None:
    """The head as a sentence-transformers Dense module without activation."""
    width, count = head["classifier/kernel"].shape
    (output / POOLING).mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    pooling |= {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}
    (output / POOLING / "config.json").write_text(json.dumps(pooling, indent=2) + "\n")
    (output / HEAD).mkdir(exist_ok=True)
    dense = {"in_features": width, "out_features": count, "bias": True, **labels}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    (output / HEAD / "config.json").write_text(json.dumps(dense, indent=2) + "\n")
    linear = {
        "linear.weight": np.ascontiguousarray(head["classifier/kernel"].T),
        "linear.bias": head["classifier/bias"],
    }
    save_file(_float32(linear), output / HEAD / "model.safetensors", metadata={"format": "pt"})
    kinds = (("", "Transformer"), (POOLING, "Pooling"), (HEAD, "Dense"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (output / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
    hf.copy_files(source, output, ("sentence_bert_config.json",))


def export_peft(
    output: Path, source: Path, tuned: Tuned, params: Flat, names: tuple[str, ...]
) -> None:
    """Writes an adapter folder that `peft` loads: with its head, without the base.

    With pooling "mean" the adapter is of the plain encoder, and the head a sentence-transformers
    Dense module beside it, since `transformers` has no such classifier.

    Raises:
        UserError: PEFT has no such method.
    """
    text = f"Labels: {', '.join(names)}." if names else ""
    if tuned.model.pooling == "mean":
        text += f" Mean pooling; the head is the Dense module in `{HEAD}`."
    peft.write(output, source, tuned, params, text)
    if tuned.model.pooling == "mean":
        _, head = _split_head(tuned, {path: np.asarray(leaf) for path, leaf in params.items()})
        _write_dense(output, source, head, {"labels": list(names)})
        (output / "modules.json").unlink()  # the encoder is elsewhere


def _split_head(tuned: Tuned, params: Flat) -> tuple[Flat, Flat]:
    head = {path: leaf for path, leaf in params.items() if path.split("/")[0] in tuned.base.head}
    return {path: leaf for path, leaf in params.items() if path not in head}, head


def _float32(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def write_export(
    kind: str,
    output: Path,
    source: Path,
    tuned: Tuned,
    params: Flat,
    names: tuple[str, ...],
    problem: str | None = "single_label_classification",
) -> str:
    """Writes `kind` ("hf", "peft" or "adapterhub") to a new folder: whole, or not at all.

    See `export_hf` for `names` and `problem`.

    Returns:
        What is left out; empty where all is written.

    Raises:
        UserError: there is no such model, or method, in that form.
    """
    if not tuned.method.trains:
        raise UserError("prompting trains nothing: there is nothing to export")
    if tuned.model.pooling == "entities":
        raise UserError(
            "task.pooling=entities: no library has a classifier that reads entities, so this model "
            "cannot be exported; task.pooling=cls and mean can"
        )
    if kind != "hf" and sized(config := read_config(source), tuned.config.vocab_size) != config:
        raise UserError(
            f"model.resize_vocabulary gave the model more words than {source} has, and an adapter "
            "folder holds none of them; export --format hf"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists and is not empty")
    unfinished = output.with_name(f".{output.name}.partial")
    hf_writer = partial(export_hf, problem=problem)
    writers = {"hf": hf_writer, "peft": export_peft, "adapterhub": export_adapterhub}
    note = writers[kind](unfinished, source, tuned, params, names)
    if output.exists():
        output.rmdir()
    unfinished.rename(output)
    return note or ""
