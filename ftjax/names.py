"""What Hugging Face calls the modules of a family's models, and which part of a tensor each is."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ftjax.errors import UserError
from ftjax.paths import expand

LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# What a folder may hold besides a model's parameters, and transformers passes over as well: buffers
# that it computes, or that older libraries stored; and parts of pretraining.
PASSED_OVER = (
    r"(.*\.)?(position_ids|token_type_ids)",
    r".*\.(attn|attention|crossattention)\.(masked_)?bias",
    r".*rotary_emb\.(cos_cached|sin_cached|(\w+_)?inv_freq)",
    r"(.*\.)?embed_(scale|positions\._float_tensor)",
    r"(.*\.)?(final_logits_bias|(en|de)coder\.version)",
    r".*\.EncDecAttention\.relative_attention_bias\.weight",
    r"(discriminator_predictions|generator_predictions|generator_lm_head)\..*",
    r"(lm|mask)_predictions\..*",
    r"(deberta\.)?embeddings\.position_embeddings\.weight",
    r"[^.]+\.(linear|residual)\.(weight|bias)",  # Dense modules of sentence-transformers
)
WORDS = ("words/embedding", "embeddings/word/embedding")


@dataclass(frozen=True)
class Part:
    """A module whose tensors are stored otherwise than a projection of its own.

    In a family's table, sizes may be what its configuration calls them.

    Attributes:
        name: of the module that holds them.
        sizes: output features of the modules that share its tensors, in order; empty for one.
        index: which of them this is.
        transposed: kernels are stored (in, out), as GPT-2's are.
        stack: how many modules, numbered at "{}" in the name, make up one parameter with a
            leading axis more, as experts do; 0 for none.
        raw: the module is itself a tensor.
        shape: as stored, where axes after the first are one of the matrix; empty for a matrix.
        buffer: never trained, by any method.
        copy: a tensor that the published class has besides and that equals one of these: written
            beside it, and read where that is absent.
    """

    name: str
    sizes: tuple[int | str, ...] = ()
    index: int = 0
    transposed: bool = False
    stack: int | str = 0
    raw: bool = False
    shape: tuple[int | str, ...] = ()
    buffer: bool = False
    copy: str = ""

    def copy_of(self, leaf: str) -> str:
        """The tensor that equals the one that holds a leaf; empty for none."""
        return self.copy if self.copy.endswith(f".{LEAVES.get(leaf)}") else ""

    def tensors(self, leaf: str) -> list[str]:
        """Names of the tensors that hold a leaf."""
        if self.raw:
            return [self.name]
        numbers = range(self.stack) if self.stack else (0,)
        return [f"{self.name.format(i)}.{LEAVES[leaf]}" for i in numbers]


@dataclass(frozen=True)
class Names:
    """What Hugging Face calls a model and its modules.

    Attributes:
        model: the class of the model without a head.
        kind: "encoder", "decoder" or "encoder-decoder".
        prefix: before the names of `base` in models with this head.
        usual: the same in the family's other models.
        base: our module path → theirs, for unrolled layers.
        head: the same for the head, without the prefix.
        ignored: patterns of tensors that this model does without.
        copies: tensors that equal the words' table, or the bias of words, where a folder holds
            them, since they are tied.
    """

    model: str
    kind: str
    prefix: str
    usual: str
    base: Mapping[str, str | Part]
    head: Mapping[str, str | Part]
    ignored: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()

    def stored(self, path: str) -> list[tuple[str, Part]]:
        """Where a parameter lies, a layer and a stacked module each: (tensor, how)."""
        tensors = []
        for unrolled in expand(path):
            module, leaf = unrolled.rsplit("/", 1)
            part = self.head.get(module) or self.base[module]
            part = Part(part) if isinstance(part, str) else part
            tensors += [(name, part) for name in part.tensors(leaf)]
        return tensors

    def copies_of(self, path: str, stored: str) -> set[str]:
        """Tensors that equal the one that a parameter lies in, where a folder has them."""
        if path.endswith(WORDS):
            return {name for name in self.copies if name.endswith(".weight")}
        module, _, leaf = stored.rpartition(".")
        biases = {name for name in self.copies if name.endswith(".bias")} if leaf == "bias" else ()
        return {name for name in biases if name.rsplit(".", 2)[0] == module}

    def prefix_in(self, weights: Mapping[str, Any]) -> str:
        """What comes before the names of the base in a folder."""
        prefixes = [f"{prefix}." for prefix in (self.prefix, self.usual) if prefix]
        return next((p for p in prefixes if any(name.startswith(p) for name in weights)), "")

    def stored_in(
        self, weights: Mapping[str, Any], path: str, prefix: str
    ) -> list[tuple[str, Part]]:
        """`stored` as a folder has it: with its prefix, and copies where originals are absent."""
        before, leaf = "" if self.in_head(path) else prefix, path.rsplit("/", 1)[1]
        stored = []
        for name, part in self.stored(path):
            own, copy = before + name, before + part.copy_of(leaf)
            stored.append((copy if own not in weights and copy in weights else own, part))
        return stored

    def plain(self) -> dict[str, str]:
        """Our module path → the name of theirs, of the base."""
        return {
            path: part if isinstance(part, str) else part.name for path, part in self.base.items()
        }

    def in_head(self, path: str) -> bool:
        """Whether a parameter is the head's own, not what a method adds to it."""
        module, _, leaf = path.rpartition("/")
        return module in self.head and leaf in LEAVES


def names_of(
    family: ModuleType, kind: str, config: Any, head: str | None, dense: Sequence[Any] = ()
) -> Names:
    """What Hugging Face calls a model with this head, and its modules.

    Args:
        family: the module of the model's family.
        kind: as of `Names`.
        config: the family's `Config`.
        head: of the model.
        dense: see `ftjax.formats.sentence_transformers.modules.dense_layers`.

    Raises:
        UserError: the family has no such head.
    """
    if head not in (None, "embedding", *config.heads):
        known = ", ".join(sorted(config.heads))
        raise UserError(f"{family.HF_PREFIX} has no head for {head!r} (it has {known})")
    modules = dict(config.heads[head].modules) if head in config.heads else {}
    modules |= {f"dense_{i}": f"{layer.place}.linear" for i, layer in enumerate(dense)}
    # A folder may hold other heads, copies of tied tensors, and buffers.
    others = [part for other in config.heads.values() for part in other.modules.values()]
    theirs = {part if isinstance(part, str) else part.name for part in others}
    theirs |= {part.copy for part in others if isinstance(part, Part) and part.copy}
    copies = r"(.*\.)?(lm_head|(en|de)coder\.embed_tokens)\.weight"
    ignored = (copies, *PASSED_OVER, *(rf"{re.escape(name)}(\..*)?" for name in sorted(theirs)))
    prefix = config.heads[head].prefix if head in config.heads else None
    usual, base = family.HF_PREFIX, config.unrolled_modules()
    vocabulary = config.heads[head].vocabulary if head in config.heads and config.tied else ""
    copies = (f"{vocabulary}.weight", f"{vocabulary}.bias") if vocabulary else ()
    return Names(family.MODEL, kind, prefix or usual, usual, base, modules, ignored, copies)


def shape_of(shape: Sequence[int], part: Part, leaf: str) -> tuple[int, ...]:
    """Shape of one module's parameter, of a stored tensor's."""
    shape = tuple(shape)
    if part.shape and part.shape == shape:
        shape = (shape[0], math.prod(shape[1:]))
    if leaf == "kernel" and not part.transposed:
        shape = shape[::-1]
    if part.sizes and shape and shape[-1] == sum(part.sizes):
        shape = (*shape[:-1], part.sizes[part.index])
    return shape
