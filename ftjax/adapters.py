"""Several adapters on one base: switched, mixed in one batch, added up, made of lower rank.

Parameters are flat dictionaries and a method's `merge` is a pure function of them, so that all
here is the same for every method: an adapter is a dictionary of leaves, a bank of adapters one
with an axis more, and an update of the base is `merge(params)` minus the base.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.errors import UserError, require
from ftjax.methods import name_of
from ftjax.methods.additive import weight_of
from ftjax.methods.lora import Lora
from ftjax.partition import merge
from ftjax.paths import Flat
from ftjax.quantization import dequantized
from ftjax.tuned import Tuned


def split(tuned: Tuned, params: Mapping[str, Any]) -> tuple[Flat, Flat]:
    """Parameters → (those of the adapter with its head, those of the base that it leaves)."""
    own = {p for p in params if p not in tuned.base.shapes or tuned.partition.is_trainable(p)}
    adapter = {path: leaf for path, leaf in params.items() if path in own}
    return adapter, {path: leaf for path, leaf in params.items() if path not in own}


def stack(adapters: Sequence[Flat]) -> Flat:
    """A bank: adapters of one method with equal shapes, stacked on a leading axis.

    Raises:
        UserError: adapters that differ; the parameter is named.
    """
    first = {path: leaf.shape for path, leaf in adapters[0].items()}
    for adapter in adapters[1:]:
        other = {path: leaf.shape for path, leaf in adapter.items()}
        for path in sorted({*first, *other}):
            require(
                first.get(path) == other.get(path),
                f"adapters differ in {path!r}: {first.get(path)} and {other.get(path)}",
            )
    return {path: jnp.stack([adapter[path] for adapter in adapters]) for path in first}


def pick(bank: Flat, index: jax.Array | int) -> Flat:
    """The adapter at an index, which may be traced: switching needs no new program."""
    return {path: leaf[index] for path, leaf in bank.items()}


def apply_mixed(
    tuned: Tuned, base: Flat, bank: Flat, batch: Mapping[str, jax.Array], index: jax.Array
) -> jax.Array:
    """Outputs of a batch whose rows have different adapters, as if each were run apart.

    Args:
        tuned: the model under the adapters' method.
        base: what `split` gives of it.
        bank: of `stack`.
        batch: every array with a row an example.
        index: (rows,), of each row's adapter in the bank.
    """

    def row(index: jax.Array, inputs: Mapping[str, jax.Array]) -> jax.Array:
        one = {name: x[None] for name, x in inputs.items()}
        return tuned.apply(merge(pick(bank, index), base), one)[0]

    return jax.vmap(row)(index, dict(batch))


def update(tuned: Tuned, params: Flat, base: Flat | None = None) -> Flat:
    """ΔW of every base parameter that the method changes, a task's head left out (task vector).

    Args:
        tuned: the model under the method.
        params: flat parameters; a quantized base is dequantized.
        base: the base model's, where the method trains those themselves, as `full` does.

    Raises:
        UserError: the method cannot be merged, or `base` is needed.
    """
    params = dequantized(params)
    head = () if tuned.base.of_words else tuned.base.head
    merged, base, changed = tuned.merged(params), base and dequantized(base), {}
    for path in tuned.base.shapes:
        trained = tuned.partition.is_trainable(path)
        if path.split("/")[0] in head or (merged[path] is params[path] and not trained):
            continue
        require(bool(base) or not trained, f"{path!r} itself was trained: `base` is needed")
        before = (base or params)[path]
        changed[path] = merged[path].astype(jnp.float32) - before.astype(jnp.float32)
    return changed


def added(base: Flat, update: Flat, factor: float = 1.0) -> Flat:
    """The base with an update: merged for factor 1, unmerged again for −1.

    A quantized base is dequantized: codes would lose a small update.
    """
    return {
        path: (leaf + factor * update[path]).astype(leaf.dtype) if path in update else leaf
        for path, leaf in dequantized(base).items()
    }


def combined(updates: Sequence[Flat], weights: Sequence[float]) -> Flat:
    """Σ w ΔW, exactly (task arithmetic, Ilharco et al. 2023)."""
    require(len(updates) == len(weights), f"{len(updates)} updates have {len(weights)} weights")
    paths = dict.fromkeys(path for update in updates for path in update)
    return {
        path: sum(w * u[path] for u, w in zip(updates, weights, strict=True) if path in u)
        for path in paths
    }


def ties(updates: Sequence[Flat], weights: Sequence[float], density: float = 0.2) -> Flat:
    """Updates with interference taken out (TIES, Yadav et al. 2023, alg. 1).

    Of each update the `density` largest entries are kept; each entry takes the sign of their sum,
    and becomes the mean, over the updates that have this sign there, of weight times entry. An
    update is zero where it has no entry. Equal to `peft`'s, to which all parameters are one tensor.
    """
    require(0 < density <= 1, f"density={density} must be in (0, 1]")
    require(len(updates) == len(weights), f"{len(updates)} updates have {len(weights)} weights")
    trimmed = [_largest(update, density) for update in updates]
    shapes = {path: leaf.shape for update in updates for path, leaf in update.items()}
    factors = jnp.asarray(weights, jnp.float32)
    merged = {}
    for path, shape in shapes.items():
        entries = jnp.stack([update.get(path, jnp.zeros(shape)) for update in trimmed])
        agrees = jnp.sign(entries) == jnp.where(entries.sum(0) >= 0, 1, -1)
        total = jnp.tensordot(factors, entries * agrees, 1)
        merged[path] = total / jnp.maximum(agrees.sum(0), 1)
    return merged


def _largest(update: Flat, density: float) -> Flat:
    sizes = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in update.values()])
    limit = jnp.sort(sizes)[-max(1, int(density * sizes.size))]
    return {path: jnp.where(jnp.abs(leaf) >= limit, leaf, 0) for path, leaf in update.items()}


def dare(update: Flat, drop: float, key: jax.Array) -> Flat:
    """An update with entries dropped at random and the rest divided by 1 − drop (Yu et al. 2023).

    Its expectation is the update; drop before `combined` or `ties`.
    """
    require(0 <= drop < 1, f"drop={drop} must be in [0, 1)")
    keys = jax.random.split(key, len(update))
    return {
        path: jnp.where(jax.random.bernoulli(k, 1 - drop, leaf.shape), leaf / (1 - drop), 0)
        for k, (path, leaf) in zip(keys, sorted(update.items()), strict=True)
    }


def to_lora(tuned: Tuned, update: Flat) -> tuple[Flat, dict[str, float]]:
    """LoRA's leaves for an update, by SVD: exact where its rank is not above the method's.

    Args:
        tuned: a model under LoRA, over a quantized base or not, of the ranks wanted, whose targets
            the update changes.
        update: ΔW by path; of kernels that are no targets nothing may be there.

    Returns:
        lora_a and lora_b of every target, and the share of ‖ΔW‖² that each target loses.

    Raises:
        UserError: the method is not LoRA, or the update changes what it does not adapt.
    """
    leaves, lost = {}, {}
    method = getattr(tuned.method, "inner", tuned.method)
    plain = isinstance(method, Lora) and method.leaves == Lora.leaves
    require(plain, f"{name_of(method)} has more than LoRA's leaves: use method.name=lora or rslora")
    weights = {module: weight_of(module, tuned.shapes) for module in method.matched(tuned.base)}
    strange = sorted(set(update) - set(weights.values()))
    if strange:
        raise UserError(f"{strange[0]!r} is changed, and method.targets does not adapt it")
    for module, path in weights.items():
        own = method.of(tuned.base, module)
        rank = own.rank
        delta = update.get(path, jnp.zeros(tuned.shapes[path].shape)) / own.scale
        u, s, vt = jnp.linalg.svd(delta, full_matrices=False)
        root = jnp.sqrt(s[..., :rank])
        leaves[f"{module}/lora_a"] = u[..., :rank] * root[..., None, :]
        leaves[f"{module}/lora_b"] = root[..., None] * vt[..., :rank, :]
        whole = jnp.maximum((s**2).sum(), 1e-30)
        lost[module] = float((s[..., rank:] ** 2).sum() / whole)
    return leaves, lost
