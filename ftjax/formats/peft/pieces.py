"""Where the parameters of an adapter lie in a PEFT folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ftjax.errors import UserError
from ftjax.formats.peft.forms import FORMS, WORDS, Form, Leaf
from ftjax.methods import name_of
from ftjax.names import Part
from ftjax.paths import expand
from ftjax.tuned import Tuned

INSIDE = "base_model.model."  # before the base model's names
TASKS = {
    None: "FEATURE_EXTRACTION",
    "embedding": "FEATURE_EXTRACTION",
    "classification": "SEQ_CLS",
    "tokens": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    **dict.fromkeys(("masked_lm", "choice", "pretraining")),  # PEFT has no task for those
}


@dataclass(frozen=True)
class Piece:
    """Where a layer of one of our parameters lies in a folder.

    Attributes:
        module: its unrolled path; "" for the model.
        key: of the tensor, without what comes before the base model's names.
        part: how the module is stored in the base model's own folder.
        leaf: how PEFT stores the parameter.
        mates: those of the parts stored together that are adapted, by index.
    """

    module: str
    key: str
    part: Part
    leaf: Leaf
    mates: tuple[int, ...]


def form_of(tuned: Tuned) -> Form:
    """How PEFT stores the model's method.

    Raises:
        UserError: PEFT has no such method.
    """
    name = name_of(tuned.method)
    if name not in FORMS:
        raise UserError(f"PEFT has no form of {name}: it has {', '.join(FORMS)}; use --format hf")
    return FORMS[name]


def prefixed(tuned: Tuned) -> bool:
    """Whether PEFT's model is a task's: `transformers` has none with mean pooling."""
    return TASKS[tuned.model.head] != "FEATURE_EXTRACTION" and tuned.model.pooling != "mean"


def own_paths(tuned: Tuned, form: Form) -> Iterator[str]:
    """Paths of the method's parameters: those it added, or those of the base it trains."""
    for path in tuned.shapes:
        added = path not in tuned.base.shapes
        chosen = tuned.partition.is_trainable(path) and not tuned.names.in_head(path)
        if (added or chosen) and path.rsplit("/", 1)[-1] in form.leaves:
            yield path


def part_of(tuned: Tuned, module: str) -> Part:
    part = tuned.names.head.get(module) or tuned.names.base[module]
    return Part(part) if isinstance(part, str) else part


def key_of(tuned: Tuned, piece: Piece, inside: str) -> str:
    """The tensor that a piece lies in; `inside` comes before names of what is not the head."""
    if not piece.module:
        return f"base_model.{piece.key}"
    return f"{INSIDE if piece.module in tuned.names.head else inside}{piece.key}"


def pieces_of(tuned: Tuned, form: Form, path: str) -> list[Piece]:
    """Where a parameter lies, a layer each."""
    pieces = []
    for unrolled in expand(path):
        module, _, name = unrolled.rpartition("/")
        leaf, part, mates = form.leaves[name], Part(""), (0,)
        if module in tuned.base.tables:
            leaf = form.leaves.get(f"{WORDS}{name}", leaf)
            if tuned.base.two_sided and len(tuned.base.tables) == 1:
                raise UserError(
                    "in PEFT an encoder's and a decoder's look-ups of words are adapted apart: it "
                    "has no form of one adapter for both"
                )
        if module:
            part = part_of(tuned, module)
        if part.sizes:
            beside = module.rpartition("/")[0]
            added = {unrolled for own in tuned.shapes for unrolled in expand(own)}
            mates = tuple(
                sorted(
                    part_of(tuned, other).index
                    for other, stored in tuned.names.base.items()
                    if other.startswith(f"{beside}/")
                    and isinstance(stored, Part)
                    and stored.name == part.name
                    and f"{other}/{name}" in added
                )
            )
            if leaf.fused == "refused":
                raise UserError(
                    f"PEFT adapts {part.name!r} as one projection, of which {module!r} is a part: "
                    f"its {leaf.suffix!r} is not that of parts. Merge a folder of PEFT's into its "
                    "base with peft (merge_and_unload); write one of ours with --format hf"
                )
        key = ".".join(filter(None, (part.name, leaf.suffix)))
        pieces.append(Piece(module, key, part, leaf, mates))
    return pieces


def join(key: str, pieces: Sequence[tuple[Piece, np.ndarray]]) -> np.ndarray:
    """One tensor of PEFT's, from the parameters of the projections that it has as one."""
    (piece, first), arrays = pieces[0], {piece.part.index: array for piece, array in pieces}
    sizes, fused = piece.part.sizes, piece.leaf.fused
    if not sizes:
        return first
    ordered = [arrays[i] for i in piece.mates]
    if fused == "split":
        tail, fill = first.shape[1:], piece.leaf.fill
        if fill is None and len(ordered) < len(sizes):
            raise UserError(
                f"PEFT adapts {piece.part.name!r} as one projection: {key!r} cannot hold a part of "
                "it; use --format hf"
            )
        rows = [arrays.get(i, np.full((n, *tail), fill)) for i, n in enumerate(sizes)]
        return np.concatenate(rows)
    if fused == "rank":
        return np.concatenate(ordered)
    if fused == "diagonal":
        rank = first.shape[1]
        out = np.zeros((sum(sizes), rank * len(ordered)), first.dtype)
        for number, index in enumerate(piece.mates):
            start = sum(sizes[:index])
            out[start : start + sizes[index], number * rank : (number + 1) * rank] = arrays[index]
        return out
    if len(ordered) < len(sizes) or any(np.any(array != first) for array in ordered):
        raise UserError(
            f"PEFT adapts {piece.part.name!r} as one projection, and here its parts are adapted "
            f"apart: {key!r} cannot hold them; use --format hf"
        )
    return first


def uncut(
    file: str, tensors: Mapping[str, np.ndarray], patterns: Mapping[str, Sequence[bool]]
) -> dict[str, np.ndarray]:
    """AdaLoRA's tensors with zeros where PEFT has cut out triplets.

    Args:
        file: that has them, for messages.
        tensors: by name.
        patterns: module's name, and "lora_E" after it → which triplets are left.
    """
    whole = dict(tensors)
    for pattern, left in patterns.items():
        mask = np.asarray(left, bool)
        for key in tensors:
            module, _, side = key.rpartition(".lora_")
            if side not in ("A", "B", "E") or not module.endswith(pattern.split(".lora_E")[0]):
                continue
            rows = tensors[key].T if side == "B" else tensors[key]
            if rows.ndim != 2:
                raise UserError(f"{file}: {key!r} has shape {rows.shape}, which is no matrix")
            if len(rows) != mask.sum():
                raise UserError(
                    f"{file}: {key!r} has {len(rows)} triplets, and its rank_pattern {mask.sum()}"
                )
            padded = np.zeros((len(mask), rows.shape[1]), rows.dtype)
            padded[mask] = rows
            whole[key] = padded.T if side == "B" else padded
    return whole


def take(what: str, stored: np.ndarray, piece: Piece, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_join`: one layer's parameter of a tensor."""
    leaf, sizes, index = piece.leaf, piece.part.sizes, piece.part.index
    needed = leaf.store(np.empty(shape, np.uint8)).shape
    if stored.ndim != len(needed):
        raise UserError(f"{what} has shape {stored.shape}, but the method's is {needed}")
    if sizes and leaf.fused == "rank" and len(stored) == needed[0] * len(piece.mates):
        start = piece.mates.index(index) * needed[0]
        stored = stored[start : start + needed[0]]
    elif sizes and leaf.fused in ("split", "diagonal") and len(stored) == sum(sizes):
        start = sum(sizes[:index])
        stored = stored[start : start + sizes[index]]
        if leaf.fused == "diagonal" and stored.shape[1] == needed[1] * len(piece.mates):
            start = piece.mates.index(index) * needed[1]
            block = slice(start, start + needed[1])
            if np.delete(stored, block, 1).any():
                raise UserError(f"{what} has a rank that differs from method.rank={needed[1]}")
            stored = stored[:, block]
    if stored.shape != needed:
        raise UserError(f"{what} has shape {stored.shape}, but the method's is {needed}")
    return leaf.restore(stored, shape)
