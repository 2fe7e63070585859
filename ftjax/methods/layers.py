"""Layers that methods attach to, as modules and by number."""

from collections.abc import Collection, Iterable

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.paths import expand


def layer_modules(base: Base) -> frozenset[str]:
    """Paths of the layers as modules, scanned or not, also of layers that share parameters."""
    return frozenset(path.rpartition("/")[0] for path in base.modules("ffn_norm"))


def layers_of(base: Base, key: str = "") -> tuple[str, ...]:
    """Paths of the layers, from the input to the output.

    Raises:
        UserError: layers share their parameters, so that none can be chosen; names `key`.
    """
    where = f"{key}: " if key else ""
    shared = f"{where}layers of this model share parameters: none can be chosen"
    require(bool(base.layers), shared)
    return base.layers


def numbers_in(base: Base, numbers: Iterable[int], key: str) -> frozenset[int]:
    """`numbers`, checked to be those of layers, counted through all stacks.

    Raises:
        UserError: there is no such layer, or layers share their parameters; names `key`.
    """
    for number in numbers:
        count = len(layers_of(base, key))
        require(0 <= number < count, f"{key}: there is no layer {number}, of {count} from 0")
    return frozenset(numbers)


def in_layers(base: Base, modules: Collection[str], numbers: Collection[int]) -> frozenset[str]:
    """Those of `modules` that are, or are in, layers with these numbers.

    Segments must be cut around the layers: `around`.
    """
    layers = [f"{base.layers[number]}/" for number in numbers]
    return frozenset(p for p in modules if f"{expand(p)[0]}/".startswith(tuple(layers)))


def around(numbers: Iterable[int]) -> tuple[int, ...]:
    """Where segments must be cut for layers with these numbers to be apart from others."""
    return tuple(sorted({end for number in numbers for end in (number, number + 1)}))
