"""ReFT (Wu et al. 2024): interventions on a few tokens' hidden states, after whole layers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.example_tokens import ENDS, at_firsts, ends_of, side_of
from ftjax.methods.initializers import ZEROS, uniform
from ftjax.methods.interception import ROOT, Interceptor, at, dropped, nested
from ftjax.methods.layers import around, in_layers, layer_modules, numbers_in
from ftjax.methods.method import FREEZE_REST, Method, head_rule
from ftjax.methods.relay import Relay
from ftjax.options import Natural, Positive, Share
from ftjax.partition import Rules
from ftjax.paths import Flat

Array = jax.Array
KINDS = ("loreft", "noreft", "direft")


@dataclass(frozen=True)
class Reft(Method):
    """h + Rᵀ(W h + b − R h) at the first f and the last l tokens of each example (eq. 2).

    R and W have shape (r, d). Kinds: "loreft", R's rows orthonormal; "noreft", R any matrix;
    "direft", any R and no −R h (eq. 4). Orthonormal rows are Rᵀ = Q of X = Q T, X (d, r) what is
    trained and T's diagonal positive, so that they stay so at every step. First and last tokens
    have parameters of their own, r (2 d + 1) each a layer: with r = 1, f = 3 and l > 0, 36,888 on
    BERT-base, where AdapterHub has as many without l. Where first and last overlap, they are last.
    The head is trained too. For the fewest parameters, and updates that only touch a prompt.

    In generation the tokens are those of the prompt, and, where it has fewer than f, the first of
    what follows. An encoder-decoder's decoder counts its own tokens.

    Attributes:
        kind: see above.
        rank: r.
        first: f.
        last: l.
        layers: their numbers, through all stacks; empty for all.
        tied: first and last tokens share parameters.
        dropout: on the whole of a changed state, in training.
        init: "identity" (loreft, noreft: W = R; direft: W = 0; b = 0), or "kaiming" (the
            reference's: W and b uniform in ±1/√d).
    """

    kind: Literal[tuple(KINDS)] = "loreft"
    rank: Positive = 1
    first: Natural = 3
    last: Natural = 0
    layers: tuple[Natural, ...] = ()
    tied: bool = False
    dropout: Share = 0.05
    init: Literal["identity", "kaiming"] = "identity"

    non_identity: ClassVar = {"init": "kaiming"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.first + self.last > 0, "method.first=0 and method.last=0 name no token")

    @property
    def units(self) -> dict[str, int]:
        """Names of a layer's sets of parameters → the tokens they are for."""
        names = ["first"] if self.tied else [name for name in ENDS if getattr(self, name)]
        return {name: ENDS[name] for name in names}

    def rules(self, base: Base) -> Rules:
        return ((r".*/reft_.*", "reft"), head_rule(base), FREEZE_REST)

    def cuts(self, layers: int) -> tuple[int, ...]:
        return around(self.layers)

    def intervened(self, base: Base) -> frozenset[str]:
        """Paths of the layers, as modules, that are intervened on."""
        numbers = numbers_in(base, self.layers, "method.layers")
        modules = layer_modules(base)
        return in_layers(base, modules, numbers) if numbers else modules

    def interceptor(self, base: Base) -> Interceptor:
        ends: Relay[tuple[dict[str, Array], Array | None]] = Relay()

        def find(module: nn.Module, input_ids: Array | None = None, **inputs: Any):
            inputs |= {"input_ids": input_ids}
            return ends_of(base, inputs, self.first, self.last), inputs.get("starts")

        def layer(module: nn.Module, call: Callable, *args: Any) -> Array:
            h = call(*args)
            by_side, starts = ends.value
            end = by_side[side_of(base, "/".join(module.path))]
            fits = h.shape[1] <= end.shape[1]
            require(fits, "reft must come before the method that lengthens rows, in method.parts")
            end = at_firsts(end, starts, h.shape[1])[..., None]
            out = h
            for unit, number in self.units.items():
                is_unit = end > 0 if self.tied else end == number
                out = jnp.where(is_unit, self.changed(module, h, unit), out)
            return out

        return nested(at(self.intervened(base), layer), ends.at(ROOT, find))

    def changed(self, module: nn.Module, h: Array, unit: str) -> Array:
        """h after the intervention of a layer's unit, at all positions."""
        size, shape = h.shape[-1], (h.shape[-1], self.rank)
        require(self.rank <= size, f"method.rank={self.rank} exceeds hidden size {size}")
        loreft = self.kind == "loreft"
        start = ZEROS if self.init == "identity" else uniform(size)
        free = nn.initializers.orthogonal() if loreft else uniform(size)
        rotation = leaf(module, f"reft_{unit}_rotation", free, shape, ("embed", "rank"))
        kernel = leaf(module, f"reft_{unit}_kernel", start, shape, ("embed", "rank"))
        bias = leaf(module, f"reft_{unit}_bias", start, shape[1:], ("rank",))
        rotation = orthonormal(rotation) if loreft else rotation
        kernel = kernel if self.kind == "direft" else kernel - rotation
        low = h @ kernel.astype(h.dtype) + bias.astype(h.dtype)
        h = h + low @ rotation.T.astype(h.dtype)
        return dropped(module, h, self.dropout)

    def initialize(self, base: Base, params: Flat, key: Array) -> Flat:
        """W = R, that step 0 be the identity."""
        if self.init != "identity" or self.kind == "direft":
            return {}
        first = {path: x for path, x in params.items() if re.search(r"/reft_\w+_rotation$", path)}
        turn = orthonormal if self.kind == "loreft" else jnp.asarray
        return {path.replace("_rotation", "_kernel"): turn(x) for path, x in first.items()}


def orthonormal(x: Array) -> Array:
    """Q of x = Q T with T's diagonal positive: (..., d, r), of orthonormal columns."""
    q, t = jnp.linalg.qr(x)
    diagonal = jnp.diagonal(t, axis1=-2, axis2=-1)
    return q * jnp.where(diagonal < 0, -1.0, 1.0)[..., None, :]
