"""What generation keeps of earlier tokens: keys and values in static shapes.

Which slot a token's key takes is said in `ftjax.models.masks`.
"""

import flax.linen as nn
import jax

Array = jax.Array


def keeps_cache(module: nn.Module) -> bool:
    """Whether a module is run for generation: on a prompt, or on one token after it."""
    return module.is_mutable_collection("cache") and not module.is_initializing()


class Cache(nn.Module):
    """Keys and values (batch, columns, heads, d) in, those to attend to out.

    Kept in the collection "cache" as (batch, heads, slots, d), the order attention reads them in.
    """

    @nn.compact
    def __call__(
        self, key: Array | None, value: Array | None, slots: Array | None
    ) -> tuple[Array, Array]:
        """As `View` says by `slots`; None for key and value: what was kept, and nothing new."""
        if slots is None:
            return key, value
        return self._joined("key", key, slots), self._joined("value", value, slots)

    def _joined(self, name: str, new: Array | None, slots: Array) -> Array:
        if slots.ndim and new is not None:
            self.put_variable("cache", name, new[:, slots].swapaxes(1, 2))
            return new
        cached = self.get_variable("cache", name)
        if new is not None:
            new = new.swapaxes(1, 2).astype(cached.dtype)
            cached = jax.lax.dynamic_update_slice_in_dim(cached, new, slots, 2)
            self.put_variable("cache", name, cached)
        return cached.swapaxes(1, 2)
