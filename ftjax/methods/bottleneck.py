"""Bottleneck adapters (see `ftjax.methods.adapter`) where each method has them.

Below, h is what a sub-layer gives and y is h plus the sub-layer's residual. Where an encoder's
memory is attended to there is no adapter, as in AdapterHub.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax

from ftjax.base_model import Base
from ftjax.leaf import leaf
from ftjax.methods.adapter import ACTIVATIONS, Bottleneck, Make
from ftjax.methods.initializers import SCALED_UNIFORM, Init
from ftjax.methods.interception import Interceptor, at, nested
from ftjax.methods.layers import layer_modules
from ftjax.methods.relay import Relay
from ftjax.options import Positive


@dataclass(frozen=True)
class Houlsby(Bottleneck):
    """Adapters after attention and after feed-forward, before residual and norm: h + a(h).

    Houlsby et al. (2019), fig. 2; AdapterHub's `double_seq_bn`. BERT-base: 1,789,056.
    """

    activation: Literal[tuple(ACTIVATIONS)] = "swish"

    def placed(self, base: Base, adapter: Make) -> Interceptor:
        def adapted(module: nn.Module, call: Callable, *args: jax.Array) -> jax.Array:
            h = call(*args)
            return h + adapter(module, h)

        return at(self.adapted(base, base.modules("attention|ffn")), adapted)


@dataclass(frozen=True)
class Pfeiffer(Bottleneck):
    """One adapter a layer, after feed-forward.

    Where the norm follows, x = LN(y), out = LN(y + a(x)): the same norm twice. Where norms stand
    before the sub-layers, out = y + a(y). Pfeiffer et al. (2021), AdapterHub's `seq_bn`.
    BERT-base: 894,528.

    With `up` zero, out = LN(y) or y: the identity.
    """

    def placed(self, base: Base, adapter: Make) -> Interceptor:
        if base.pre_norm:
            return self._after_layers(base, adapter)
        inside: list[nn.Module] = []  # the norm is called once more below, then without the adapter

        def adapted(module: nn.Module, call: Callable, y: jax.Array) -> jax.Array:
            if inside:
                return call(y)
            inside.append(module)
            x = module(y)
            inside.pop()
            return call(y + adapter(module, x))

        return at(self.adapted(base, base.modules("ffn_norm")), adapted)

    def _after_layers(self, base: Base, adapter: Make) -> Interceptor:
        def adapted(module: nn.Module, call: Callable, *args: jax.Array) -> jax.Array:
            y = call(*args)
            return y + adapter(module, y)

        return at(self.adapted(base, layer_modules(base)), adapted)


@dataclass(frozen=True)
class AdapterDrop(Pfeiffer):
    """`pfeiffer` without adapters in the first layers (Rücklé et al. 2021, §3).

    The layers below the first adapter have no trainable parameters and need no backward pass.

    Attributes:
        leave_out: for the first n layers, 0 to n - 1.
    """

    leave_out: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Parallel(Bottleneck):
    """One adapter a layer, beside feed-forward: h + s · a(x), x being the sub-layer's residual.

    Where norms stand before the sub-layers, x is not normalized. He et al. (2022), table 1;
    AdapterHub's `par_bn`. With init="zero", `down` is uniform in ±1/√d, as the reference's.
    BERT-base: 7,091,712.

    Attributes:
        scale: s.
    """

    reduction: Positive = 2
    scale: float = 4.0

    def placed(self, base: Base, adapter: Make) -> Interceptor:
        residual: Relay[jax.Array] = Relay()  # what the norm before feed-forward is given

        def adapted(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            before = residual.value if base.pre_norm else x
            return call(x) + adapter(module, before)

        blocks = at(self.adapted(base, base.modules("ffn")), adapted)
        norms = self.adapted(base, base.modules("ffn_norm")) if base.pre_norm else ()
        return nested(blocks, residual.at(norms, lambda module, x: x))

    def adapter(self, module: nn.Module, x: jax.Array) -> jax.Array:
        return self.scale * super().adapter(module, x)

    @property
    def inits(self) -> tuple[Init, Init]:
        down, up = super().inits
        return SCALED_UNIFORM if self.init == "zero" else down, up


@dataclass(frozen=True)
class ScaledParallel(Parallel):
    """`parallel` with a scale that is learned, one more parameter a layer.

    Attributes:
        scale: where it starts.
    """

    scale: float = 1.0

    def adapter(self, module: nn.Module, x: jax.Array) -> jax.Array:
        start = nn.initializers.constant(self.scale)
        scale = leaf(module, "adapter_scale", start, (1,), (None,))
        return scale.astype(x.dtype) * Bottleneck.adapter(self, module, x)
