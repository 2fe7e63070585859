"""The files of a folder that its tokenizer is made of."""

import importlib.util
import shutil
from collections.abc import Iterable
from pathlib import Path

from ftjax.errors import UserError

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
PACKAGES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # module → package


def tokenizer_files(folder: Path) -> list[str]:
    """Names, in order, of all that a folder's tokenizer may read but config.json."""
    names = {file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()}
    return sorted(str(file.relative_to(folder)) for file in names)


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
