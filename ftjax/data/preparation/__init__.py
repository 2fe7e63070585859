"""The registry of preparation steps: a new step is a dataclass and one line here.

Or it is nothing here: a dataclass of another package, see `ftjax.registry`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ftjax import registry
from ftjax.errors import UserError, nearest
from ftjax.options import options

# name → (module, class, what it does)
STEPS: registry.Table = {
    "repair": ("cleaning", "Repair", "mends broken Unicode, and normalizes it"),
    "clean_labels": ("cleaning", "CleanLabels", "strips, changes case of, and maps labels"),
    "mask_personal": ("personal", "MaskPersonal", "e-mail, phone, card, IBAN, IP, Chinese ID"),
    "filter_language": ("filters", "FilterLanguage", "drops texts of other languages"),
    "filter_length": ("filters", "FilterLength", "drops texts too short or too long"),
    "filter_words": ("filters", "FilterWords", "drops texts with a word of a list"),
    "filter_classifier": ("filters", "FilterClassifier", "drops what a trained classifier finds"),
    "cut_texts": ("pieces", "CutTexts", "cuts long texts into rows of whole sentences"),
    "drop_duplicates": ("duplicates", "DropDuplicates", "keeps each text once, over all splits"),
    "drop_near_duplicates": ("duplicates", "DropNearDuplicates", "of texts nearly alike keeps one"),
    "oversample": ("balance", "Oversample", "repeats training rows of rare labels"),
    "undersample": ("balance", "Undersample", "leaves out training rows of frequent labels"),
    "synonym_replacement": ("augmentation", "SynonymReplacement", "adds texts with synonyms"),
    "random_insertion": ("augmentation", "RandomInsertion", "adds texts with synonyms put in"),
    "random_swap": ("augmentation", "RandomSwap", "adds texts with words swapped"),
    "random_deletion": ("augmentation", "RandomDeletion", "adds texts with words left out"),
    "eda": ("augmentation", "Eda", "adds texts by those four in turn"),
    "back_translation": ("rewording", "BackTranslation", "adds texts translated there and back"),
    "masked_substitution": ("rewording", "MaskedSubstitution", "adds texts a masked model changed"),
}
REGISTRY = registry.Registry(
    "data.prepare: {!r}",
    "ftjax.data.preparation",
    STEPS,
    "ftjax.preparation",
    needs=("apply", "content", "by_row", "training_only", "divides"),
)


def find(name: str) -> type:
    """The dataclass of options registered as `name`.

    Raises:
        UserError: no such step; the nearest is named.
    """
    return REGISTRY.find(name)


def create(entry: str | Mapping[str, Any]) -> tuple[str, Any]:
    """The name and the step of an entry: a name, or {"step": name, option: value, ...}.

    Raises:
        UserError: an unknown step or option, or a value out of range.
    """
    values = {"step": entry} if isinstance(entry, str) else entry
    if not isinstance(values, Mapping) or not isinstance(values.get("step"), str):
        raise UserError(
            f"data.prepare: {entry!r} is neither a step's name nor a mapping "
            'such as {"step": "filter_length", "minimum": 3}'
        )
    name, settings = values["step"], {key: value for key, value in values.items() if key != "step"}
    cls = find(name)
    known, where = options(cls), f"data.prepare: {name}"
    for key in settings:
        if key not in known:
            raise UserError(f"{where}: {key!r} is not an option{nearest(key, known)}")
    try:
        return name, cls(**{k: known[k].read(k, value) for k, value in settings.items()})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def steps(entries: Sequence[str | Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """The names and steps of `data.prepare`, in order."""
    return [create(entry) for entry in entries]
