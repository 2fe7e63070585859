"""LoRA-FA (Zhang et al. 2023): LoRA of which A is frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import optax

from ftjax.base_model import Base
from ftjax.methods.lora import Lora
from ftjax.methods.method import Transform, present
from ftjax.paths import Flat


@dataclass(frozen=True)
class LoraFa(Lora):
    """LoRA whose A stays as drawn; only B (r, out) trains (Zhang et al. 2023, eq. 3).

    B's gradient becomes (1/s²) (AᵀA + 1e-8 I)⁻¹ g before the optimizer sees it: of all updates of
    B the one whose change s A ΔB of the weights is nearest to the full gradient. r · out
    parameters a projection. Saves the moments of A and, for the backward pass, the projection's
    inputs, of which only x A is kept. Equal to `peft`'s LoraFAOptimizer, which takes the product
    with the inverse in bfloat16 under autocast, though; here it is in float32.
    """

    fixed: ClassVar[tuple[str, ...]] = ("lora_a",)
    embeddings: ClassVar[bool] = False  # whose A is zero

    def optimizer(
        self, base: Base, group: str, core: Transform, rest: Transform, steps: int
    ) -> Transform:
        if group != self.group:
            return optax.chain(core, rest)
        scales = {module: self.of(base, module).scale for module in self.matched(base)}
        return optax.chain(preconditioned(scales), core, rest)


def preconditioned(scales: Mapping[str, float]) -> optax.GradientTransformationExtraArgs:
    """g → (1/s²) (AᵀA + 1e-8 I)⁻¹ g for the lora_b of every module, with A among the frozen."""

    def update(
        grads: Flat, state: Any, params: Any = None, *, frozen: Flat, **extra: Any
    ) -> tuple[Flat, Any]:
        solved = {}
        for path, grad in present(grads).items():
            module = path.removesuffix("/lora_b")
            a = frozen[f"{module}/lora_a"].astype(jnp.float32)
            gram = jnp.swapaxes(a, -1, -2) @ a + 1e-8 * jnp.eye(a.shape[-1])
            solved[path] = jnp.linalg.solve(gram, grad) / scales[module] ** 2
        return {**grads, **solved}, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
