"""AdapterFusion (Pfeiffer et al. 2021): each layer attends over several trained adapters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.adapter import Adapter
from ftjax.methods.bottleneck import Pfeiffer
from ftjax.methods.initializers import NORMAL, ZEROS
from ftjax.methods.interception import Interceptor
from ftjax.methods.method import FREEZE_REST, head_rule
from ftjax.options import NotNegative
from ftjax.partition import FROZEN, Rules
from ftjax.paths import Flat

Array = jax.Array
NEAR = 1e-6  # off V's diagonal, at the start


def near_identity(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return jnp.eye(*shape, dtype=dtype) * (1 - NEAR) + NEAR


@dataclass(frozen=True)
class AdapterFusion(Pfeiffer):
    """Σₙ pₙ V aₙ(x) where `pfeiffer` has a(x); p = softmax over n of (Q x + b)·(K aₙ(x) + c).

    Section 3.2, and AdapterHub's Fuse: scores are not divided by √d, and have no dropout. The loss
    has the penalty λ Σ ‖I − V‖². Trained are Q, K (d, d), their biases and V (d, d), 3d² + 2d a
    layer, and the head: 21,252,096 on BERT-base. (c moves every score alike: it changes nothing,
    and is there as in published folders.) For several tasks at once, without forgetting any.

    Attributes:
        adapters: folders of trained adapters, of pfeiffer placement and all of these
            hyperparameters; they stay frozen.
        count: of adapters to make, and to train with the fusion, where `adapters` is empty.
        regularization: λ.
    """

    adapters: tuple[str, ...] = ()
    count: Annotated[int, "[2, inf)"] = 2
    regularization: NotNegative = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.number > 1, f"method.count={self.number}: fusion is of two adapters or more")

    @property
    def number(self) -> int:
        """Of adapters."""
        return len(self.adapters) or self.count

    @property
    def single(self) -> Pfeiffer:
        """The method of each of the adapters alone."""
        return Pfeiffer(**{field.name: getattr(self, field.name) for field in fields(Pfeiffer)})

    def rules(self, base: Base) -> Rules:
        group = FROZEN if self.adapters else "adapter"
        return (
            (r".*/fusion/.*", "fusion"),
            (r".*/adapter_\d+/.*", group),
            head_rule(base),
            FREEZE_REST,
        )

    def interceptor(self, base: Base) -> Interceptor:
        return self.placed(base, self.fused)

    def fused(self, module: nn.Module, x: Array) -> Array:
        """Σₙ pₙ V aₙ(x), of adapters made in `module` and named "adapter_0" and so on."""
        width, inits = self.width(x), self.inits
        outputs = [
            Adapter(width, self.activation, inits, parent=module, name=f"adapter_{n}")(x)
            for n in range(self.number)
        ]
        return Fusion(parent=module, name="fusion")(x, jnp.stack(outputs, -2))

    def penalty(self, base: Base, params: Flat) -> Array:
        """λ Σ ‖I − V‖² over all layers, stacked or not."""
        values = [x for path, x in params.items() if path.endswith("fusion/value_kernel")]
        away = (jnp.square(jnp.eye(x.shape[-1]) - x).sum() for x in values)
        return self.regularization * sum(away)


class Fusion(nn.Module):
    """Attention of x (..., d) over adapters' outputs (..., n, d)."""

    @nn.compact
    def __call__(self, x: Array, adapted: Array) -> Array:
        size = x.shape[-1]

        def project(x: Array, name: str) -> Array:
            kernel = leaf(self, f"{name}_kernel", NORMAL, (size, size), ("embed", None))
            bias = leaf(self, f"{name}_bias", ZEROS, (size,), (None,))
            return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)

        query, key = project(x, "query"), project(adapted, "key")
        scores = jnp.einsum("...d,...nd->...n", query, key).astype(jnp.float32)
        weights = jax.nn.softmax(scores).astype(x.dtype)
        value = leaf(self, "value_kernel", near_identity, (size, size), ("embed", None))
        # V is linear: of the sum once, not of each adapter's output.
        return jnp.einsum("...n,...nd->...d", weights, adapted) @ value.astype(x.dtype)


def placed_as(params: Mapping[str, Any], number: int) -> Flat:
    """A trained adapter's parameters, as `pfeiffer` names them, as the fusion's of that number."""
    return {
        re.sub(r"(^|/)adapter/", rf"\1adapter_{number}/", path): value
        for path, value in params.items()
        if re.search(r"(^|/)adapter/", path)
    }


def alone(params: Mapping[str, Any], number: int) -> Flat:
    """The inverse: the parameters of the fusion's adapter of that number, as `pfeiffer`'s."""
    inside = rf"(^|/)adapter_{number}/"
    return {
        re.sub(inside, r"\1adapter/", path): value
        for path, value in params.items()
        if re.search(inside, path)
    }
