"""The files of a folder that its tokenizer is made of."""

import importlib.util
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from ftjax.errors import UserError
from ftjax.formats.guard import reading
from ftjax.formats.jsons import check, read_json, read_value

PATTERNS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*vocab*.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "*.tiktoken",
    "*.model",
    "*.spm",
    "*.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
SENTENCEPIECE = (".model", ".spm")
# Without which libraries may make a tokenizer of no words.
VOCABULARIES = (*SENTENCEPIECE, "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json")
PACKAGES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # module → package


def tokenizer_files(folder: Path) -> list[str]:
    """Names, in order, of all that a folder's tokenizer may read but config.json."""
    names = {file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()}
    return sorted(str(file.relative_to(folder)) for file in names)


@dataclass(frozen=True)
class Settings:
    """What keys of tokenizer_config.json may be, with examples."""

    tokenizer_class: str | None = "BertTokenizerFast"
    model_max_length: float | None = 512
    extra_ids: Annotated[int, "[0, 100000]"] = 100
    chat_template: str | list[dict] | dict | None = None


def check_files(folder: Path) -> None:
    """Raises UserError where a tokenizer's settings are not what they may be."""
    if (folder / "tokenizer_config.json").exists():
        path = folder / "tokenizer_config.json"
        check(path, read_json(path), Settings)


def require_sound(folder: Path) -> None:
    """Raises UserError for a tokenizer's file that by itself cannot be read."""
    for name in (name for name in tokenizer_files(folder) if name.endswith(".json")):
        read_value(folder / name)
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        with reading(folder / "tokenizer.json", "is no tokenizer that can be read"):
            Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a", "b")


def fault_in(folder: Path, load: Callable[[Path], Any]) -> Path:
    """The file without which a tokenizer can be read; its folder where there is no such one.

    Args:
        folder: whose tokenizer cannot be read.
        load: reads one.
    """
    for name in sorted(tokenizer_files(folder), key=lambda name: name.endswith(VOCABULARIES)):
        with TemporaryDirectory() as place:
            copy_files(folder, Path(place), {*tokenizer_files(folder), "config.json"} - {name})
            with suppress(UserError, ImportError), reading(folder):
                load(Path(place))
                return folder / name
    return folder


def require_packages(folder: Path) -> bool:
    """Whether a tokenizer is SentencePiece's alone; raises UserError if what reads it is absent."""
    names = tokenizer_files(folder)
    if "tokenizer.json" in names or not any(name.endswith(SENTENCEPIECE) for name in names):
        return False
    absent = [package for module, package in PACKAGES.items() if not _installed(module)]
    if absent:
        file = next(name for name in names if name.endswith(SENTENCEPIECE))
        raise UserError(f"{folder / file} needs a package: pip install {' '.join(absent)}")
    return True


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def copy_files(source: Path, output: Path, names: Iterable[str]) -> None:
    """Copies those of the named files that exist, and that the other folder does not have."""
    for name in names:
        if (source / name).exists() and not (output / name).exists():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, output / name)
