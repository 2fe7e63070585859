"""Folders that AdapterHub's library wrote, and models of them."""

import re
from pathlib import Path

import jax
from safetensors.numpy import load_file

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.formats.adapterhub.folder import export_adapterhub, read_adapter, read_method
from ftjax.formats.folder import read_config
from ftjax.formats.pickled import read_tensors

FOLDER = Path(__file__).parents[1] / "fixtures" / "adapterhub"
LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")


def build(folder, head="classification", method=None, **settings):
    """The base of a fixture under the method that its folder tells."""
    task = {"head": head, "labels": len(LABELS), "pooling": "cls"}
    method = methods.create(method or read_method(folder))
    return build_tuned(read_config(folder.parent / "base"), method, settings, task)


def load(folder, model, mesh, head=True):
    """The base's parameters and the adapter's."""
    key = jax.random.key(0)
    params, _ = pretrained.load(folder.parent / "base", model, mesh, key)
    return {**params, **read_adapter(folder, model, head)}


def inputs(reference, prefix=""):
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    return {n: reference[f"{prefix}{n}"] for n in names if f"{prefix}{n}" in reference}


def own_name(tensor):
    """The model's name of a tensor that each layer holds too, as prefixes."""
    return re.sub(r"^(\w+)\..*\.pool\.", r"\1.prefix_tuning.", tensor)


def renamed(text):
    """The fixtures' names of fused adapters, for ours."""
    return text.replace("task_0", "first").replace("task_1", "second")


FILES = {
    "adapter": ("adapter.safetensors", "pytorch_adapter.bin"),
    "adapter_fusion": ("model_adapter_fusion.safetensors", ""),
    "head": ("model_head.safetensors", "pytorch_model_head.bin"),
}


def stored(folder, part="adapter"):
    """The tensors of an adapter, of a fusion or of a head, each once."""
    safe, pickled = FILES[part]
    safely = (folder / safe).exists()
    tensors = load_file(folder / safe) if safely else read_tensors(folder / pickled)
    return {renamed(own_name(name)): array for name, array in tensors.items()}


def export(folder, output, params, model, **options):
    base = folder.parent / "base"
    export_adapterhub(output, base, model, params, LABELS, **options)
