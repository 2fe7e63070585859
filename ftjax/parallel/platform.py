"""What a program is traced for, where its shapes depend on it."""

import jax

PLATFORM = jax.make_user_context("")  # "cpu", "gpu" or "tpu"; empty: not said
SCANNED = jax.make_user_context(False)  # whether in a layer of a loop over layers
SPARSE_CORES = jax.make_user_context(False)  # whether chips' sparse cores send and sum
