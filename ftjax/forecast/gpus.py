"""GPUs that are not there, described to XLA as their driver would describe them."""

import re
from dataclasses import dataclass

import jax

from ftjax.errors import UserError
from ftjax.forecast.chips import Chip

MOST = 8  # GPUs of a host that NVLink joins
# What only a GPU could say is in no figure.
UNKNOWN = (
    "an estimate: no kernel was tuned on a GPU, and neither cuDNN's workspace nor NCCL's buffers "
    "are in it"
)


@dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks of a GPU.

    Attributes:
        chip: its published figures; the memory is what its driver leaves.
        name: as its driver has it.
        capability: the major version of its instructions.
        cores: streaming multiprocessors.
        units: of float32, a core.
        cache: bytes, of the second level.
        shared: bytes of a core that its threads share; a block may have all but 1 KiB.
        clock: GHz.
    """

    chip: Chip
    name: str
    capability: int
    cores: int
    units: int
    cache: int
    shared: int
    clock: float


def _chip(memory: float, bandwidth: float, flops: float, links: float, network: float) -> Chip:
    return Chip(memory, bandwidth, flops, links, 1.0, network=network, platform="gpu")


_HOPPER = {"capability": 9, "cores": 132, "units": 128, "cache": 50 * 2**20}
_HOPPER |= {"shared": 228 * 2**10, "clock": 1.98}
# As in NVIDIA's data sheets of SXM modules, without sparsity; NVLink one way. The network is that
# of a DGX: one adapter a GPU, of 200 Gb/s beside A100s and 400 Gb/s beside the others.
GPUS = {
    "a100": Gpu(
        _chip(85_100_068_864, 2.039e12, 312e12, 300e9, 25e9),
        "NVIDIA A100-SXM4-80GB",
        capability=8,
        cores=108,
        units=64,
        cache=40 * 2**20,
        shared=164 * 2**10,
        clock=1.41,
    ),
    "h100": Gpu(
        _chip(84_942_979_072, 3.35e12, 989e12, 450e9, 50e9), "NVIDIA H100 80GB HBM3", **_HOPPER
    ),
    "h200": Gpu(_chip(151_397_597_184, 4.8e12, 989e12, 450e9, 50e9), "NVIDIA H200", **_HOPPER),
}


def gpu_devices(name: str, hosts: int = 1) -> tuple[Chip, list[jax.Device]]:
    """The GPU of a topology such as "h100:8", and devices to compile for, without any.

    Args:
        name: the kind, and how many a host has.
        hosts: how many there are of these.

    Raises:
        UserError: no such topology, or CUDA's plugin for JAX is not installed.
    """
    from jax.experimental import topologies

    kind, _, count = name.partition(":")
    if not re.fullmatch(r"[1-9]\d*", count) or int(count) > MOST:
        raise UserError(
            f"--topology {name}: a host has 1 to {MOST} GPUs, as in {kind}:{MOST}; add --hosts "
            "for more"
        )
    gpu = GPUS[kind]
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(gpu), topology=f"1x{hosts}x{count}"
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--topology {name}: {reason}. CUDA's compiler is needed, no GPU: "
            "pip install 'ftjax[gpu-aot]'"
        ) from error
    return gpu.chip, list(topology.devices)


def target_config(gpu: Gpu) -> str:
    """A GPU as XLA's `GpuTargetConfigProto`, in protobuf's text."""
    accelerated = "feature_extension: ACCELERATED_FEATURES" if gpu.capability >= 9 else ""
    return f"""
gpu_device_info {{
  name: "{gpu.name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64
  cuda_compute_capability {{ major: {gpu.capability} {accelerated} }}
  core_count: {gpu.cores} fpus_per_core: {gpu.units} clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.chip.memory:.0f} memory_bandwidth: {gpu.chip.bandwidth:.0f}
  l2_cache_size: {gpu.cache} shared_memory_per_core: {gpu.shared}
  shared_memory_per_block: {48 * 2**10} shared_memory_per_block_optin: {gpu.shared - 2**10}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
  registers_per_core_limit: {2**16} registers_per_block_limit: {2**16}
  driver_version: "13.0.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
