"""`ftjax` where a mesh's devices lie in turn over the processes, as those of a TPU slice may."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from ftjax.commands import entry as cli


def main(arguments: Sequence[str]) -> int:
    """Runs the command with one device of each process after another."""

    def laid(sizes: Sequence[int], devices: Sequence[jax.Device], **_: Any) -> np.ndarray:
        processes = [
            [device for device in devices if device.process_index == number]
            for number in range(jax.process_count())
        ]
        return np.array(list(zip(*processes, strict=True))).reshape(sizes)

    mesh_utils.create_device_mesh = laid
    return cli.main(arguments)
