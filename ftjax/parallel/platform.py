"""What a program is traced for, where its shapes depend on it."""

import jax

PLATFORM = jax.make_user_context("")  # "cpu", "gpu" or "tpu"; empty: not said
SPARSE_CORES = jax.make_user_context(False)  # whether chips' sparse cores send and sum
