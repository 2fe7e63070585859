"""The platform that a program is traced for, where its shapes depend on it."""

import jax

PLATFORM = jax.make_user_context("")  # "cpu", "gpu" or "tpu"; empty: not said
