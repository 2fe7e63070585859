"""A base model as methods see it: paths, shapes and names of its modules, no code."""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from ftjax.errors import UserError, nearest
from ftjax.paths import Flat, expand
from ftjax.patterns import ends_match, matches, require_pattern

T = TypeVar("T")


def _number(layer: str) -> int:
    return int(layer.rpartition("_")[2])


@dataclass(frozen=True)
class Base:
    """What a method may know of a model: paths and shapes, no modules.

    Attributes:
        shapes: flat abstract parameters of the model without any method.
        names: our unrolled module path → Hugging Face's module name.
        head: names of the top-level modules that make up the task head.
        buffers: names of top-level modules that no method trains.
        of_words: the head says words: it is the base model's own, not a task's.
        default_targets: which projections low-rank methods adapt unless told otherwise.
        pre_norm: norms stand before the sub-layers, not after.
        tokenize: text → token ids without special tokens; None before a folder is open.
        prefix: before Hugging Face's names, in models with a head.
        embedding_scale: what embeddings are multiplied by when they are looked up.
    """

    shapes: Flat
    names: Mapping[str, str]
    head: tuple[str, ...]
    default_targets: tuple[str, ...]
    pre_norm: bool = False
    tokenize: Callable[[str], Sequence[int]] | None = None
    prefix: str = ""
    embedding_scale: float = 1.0
    buffers: tuple[str, ...] = ()
    of_words: bool = False

    @property
    def words(self) -> str:
        """Path of the module that looks up words."""
        return "words" if "words/embedding" in self.shapes else "embeddings/word"

    @property
    def tables(self) -> frozenset[str]:
        """Paths of the modules that look up words: of one that decoders may have besides, too."""
        both = self.words, "decoder_words"
        return frozenset(path for path in both if f"{path}/embedding" in self.shapes)

    @property
    def words_shape(self) -> tuple[int, int]:
        """(vocabulary, features) of the words' table."""
        return self.shapes[f"{self.words}/embedding"].shape

    def reading_off(self) -> dict[str, tuple[int, int]]:
        """Path of the projection by which words are read off, where it has weights of its own."""
        heads = self.head if self.of_words else ()
        kernels = {head: self.shapes.get(f"{head}/kernel") for head in heads}
        return {head: kernel.shape for head, kernel in kernels.items() if kernel is not None}

    @property
    def two_sided(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return bool(self.modules("cross"))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Unrolled paths of the layers from the input to the output, all stacks in turn.

        Empty where layers share their parameters.
        """
        paths = re.findall(r"(?m)^((?:.*/)?layer_\d+)/", "\n".join(self._unrolled()))
        return tuple(sorted(set(paths), key=lambda p: (p.startswith("decoder"), _number(p))))

    def _unrolled(self) -> list[str]:
        return [name for path in self.shapes for name in expand(path)]

    def projections(self) -> dict[str, tuple[int, int]]:
        """Module path of every projection outside the head → (in, out)."""
        return {
            path.removesuffix("/kernel"): leaf.shape[-2:]
            for path, leaf in self.shapes.items()
            if path.endswith("/kernel") and path.split("/")[0] not in self.head
        }

    def experts(self) -> frozenset[str]:
        """Paths of the projections that hold a kernel of each expert, (experts, in, out)."""
        axes = {
            path: len(leaf.shape) - (expand(path) != [path]) for path, leaf in self.shapes.items()
        }
        return frozenset(path for path in self.projections() if axes[f"{path}/kernel"] == 3)

    def routers(self) -> frozenset[str]:
        """Paths of the projections that choose among experts."""
        return self.modules("router")

    def modules(self, pattern: str) -> frozenset[str]:
        """Paths of the modules whose last name matches `pattern` in full."""
        parents = {
            "/".join(parts[:i])
            for parts in (path.split("/") for path in self.shapes)
            for i in range(1, len(parts))
        }
        return frozenset(p for p in parents if re.fullmatch(pattern, p.split("/")[-1]))

    def names_of(self, unrolled: str) -> tuple[str, ...]:
        """What a module may be called by: our path, and Hugging Face's name."""
        theirs = self.names.get(unrolled, "")
        return (unrolled.replace("/", "."), unrolled, theirs, f"{self.prefix}.{theirs}")

    def value_at(self, module: str, pattern: Iterable[tuple[str, Any]]) -> Any:
        """What the first of (pattern, value) that matches a module says; None where none does.

        A pattern must match the last dotted parts of one of the module's names.

        Raises:
            UserError: it says different things of the layers of a scanned segment.
        """

        def value(unrolled: str) -> Any:
            for key, value in pattern:
                if any(ends_match(key, name) for name in self.names_of(unrolled)):
                    return value
            return None

        values = {value(name) for name in expand(module)}
        if len(values) > 1:
            raise UserError(
                f"{dict(pattern)} differs between layers of the scanned segment {module!r}; set "
                "model.segments so that it does not cross them"
            )
        return values.pop()

    def match(
        self, targets: str | Iterable[str], words: bool = False
    ) -> dict[str, tuple[int, int]]:
        """Projections that `targets` selects, by our names or Hugging Face's → (in, out).

        Args:
            targets: "all-linear" (all but the head, experts and their routers), a regular
                expression that must match a name in full, or a list of names, each equal to a name
                or to its last dotted parts.
            words: tables of words, (vocabulary, features), and the projection that reads words
                off, (features, vocabulary), may be selected by name, too.

        Raises:
            UserError: a target matches nothing, only some layers of a scanned segment, or experts.
        """
        key = (targets if isinstance(targets, str) else tuple(targets), words)
        return dict(self.once(key, lambda: self._match(*key)))

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` gives, computed the first time: methods ask again for every parameter."""
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    @cached_property
    def _computed(self) -> dict[Hashable, Any]:
        return {}

    def _match(self, targets: str | tuple[str, ...], words: bool) -> dict[str, tuple[int, int]]:
        projections, experts = self.projections(), self.experts()
        if targets == "all-linear":
            left_out = experts | self.routers()
            return {path: shape for path, shape in projections.items() if path not in left_out}
        if words:
            projections |= dict.fromkeys(self.tables, self.words_shape)
            projections |= self.reading_off()
        named = set() if isinstance(targets, str) else {name.split(".")[-1] for name in targets}
        if "lm_head" in named - projections.keys():
            raise UserError(
                "method.targets: this model has no projection 'lm_head': words are read off by the "
                "table that they are looked up in, or the task has another head"
            )
        matched = self.select(targets, projections, "projection")
        for path in sorted(experts.intersection(matched)):
            raise UserError(
                f"method.targets={targets!r} selects {path!r}, which has a kernel of each expert: "
                "experts cannot be adapted"
            )
        return matched

    def norms(self) -> dict[str, tuple[int, ...]]:
        """Module path of every norm → its shape."""
        return {
            path.removesuffix("/scale"): leaf.shape
            for path, leaf in self.shapes.items()
            if path.endswith("norm/scale")
        }

    def select(
        self, targets: str | Iterable[str], modules: Mapping[str, Any], kind: str
    ) -> dict[str, Any]:
        """Those of `modules` that `targets` selects.

        Args:
            targets: a regular expression, or names, as in `match`.
            modules: path → anything.
            kind: what they are, for messages.

        Raises:
            UserError: a target matches nothing, or only some layers of a scanned segment.
        """
        selectors = [targets] if isinstance(targets, str) else list(targets)
        regex = isinstance(targets, str)
        if regex:
            require_pattern("method.targets", targets)

        def hit(target: str, unrolled: str) -> bool:
            names = self.names_of(unrolled)
            if regex:
                return any(matches(target, name) for name in names)
            return any(name == target or name.endswith("." + target) for name in names)

        used: set[str] = set()
        matched = {}
        for path, value in modules.items():
            unrolled = expand(path)
            hits = {name: [t for t in selectors if hit(t, name)] for name in unrolled}
            used.update(t for matching in hits.values() for t in matching)
            if any(hits.values()):
                if not all(hits.values()):
                    raise UserError(
                        f"method.targets={targets!r} selects only some layers of the scanned "
                        f"segment {path!r}; set model.segments so that it does not cross them"
                    )
                matched[path] = value
        missed = [t for t in selectors if t not in used]
        if missed or not matched:
            known = {n.split(".")[-1] for p in modules for n in self.names_of(expand(p)[0])}
            known = {n.split("/")[-1] for n in known if n}
            missed = missed or [str(targets)]
            hint = nearest(missed[0], known)
            if regex and missed[0] in known:
                hint = (
                    f" in full, as a pattern must: [{missed[0]!r}] selects by last parts of names"
                )
            raise UserError(f"method.targets: {missed[0]!r} matches no {kind}{hint}")
        return matched
