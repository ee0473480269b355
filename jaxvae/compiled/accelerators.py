"""Descriptions of accelerators: what XLA needs to compile for them, and what bounds them."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from jax.experimental import topologies

from jaxvae.errors import InputError

# So that libtpu does not look for TPUs, nor complain that there are none, nor that another process has loaded it: it is
# only to compile.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
GIGA, TERA = 10**9, 10**12


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks about an NVIDIA GPU: see NVIDIA's tuning guides and the field names of OpenXLA's
    ``GpuTargetConfigProto``.

    Attributes:
      capability: the compute capability, (major, minor).
      cores: streaming multiprocessors.
      fpus: float32 units of a core.
      clock: GHz.
      shared: bytes of shared memory of a core.
      cache: bytes of the second-level cache.
    """

    capability: tuple[int, int]
    cores: int
    fpus: int
    clock: float
    shared: int
    cache: int


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One accelerator.

    Attributes:
      name: in full.
      platform: JAX's name of the platform.
      flops: FLOP/s at best, by what products are computed in (`jaxvae.train.cost.products_of`).
      bandwidth: bytes/s of its memory.
      memory: bytes.
      link: bytes/s to the other devices, each way.
      gpu: of an NVIDIA GPU, what XLA asks about it.
    """

    name: str
    platform: Literal["cuda", "tpu"]
    flops: Mapping[str, float]
    bandwidth: float
    memory: int
    link: float
    gpu: Gpu | None = None


def _gpu(
    name: str, flops: tuple[float, float, float], bandwidth: float, memory: int, link: float, gpu: Gpu
) -> Accelerator:
    """`flops`: TFLOP/s of float32, TF32, and bfloat16, without sparsity; `bandwidth`: TB/s; `link`: GB/s."""
    float32, tf32, bfloat16 = (each * TERA for each in flops)
    products = {
        "float32-highest": float32,
        "float32-high": tf32,
        "float32-default": tf32,
        "bfloat16": bfloat16,
    }
    return Accelerator(name, "cuda", products, bandwidth * TERA, memory, link * GIGA, gpu)


def _tpu(name: str, bfloat16: float, bandwidth: float, memory: int, link: float) -> Accelerator:
    """`bfloat16`: TFLOP/s; a float32 product is one, three or six of bfloat16. `bandwidth`, `link`: GB/s."""
    passes = {"float32-highest": 6, "float32-high": 3, "float32-default": 1, "bfloat16": 1}
    products = {name: bfloat16 * TERA / each for name, each in passes.items()}
    return Accelerator(name, "tpu", products, bandwidth * GIGA, memory * 2**30, link * GIGA)


# From the makers' data sheets. `link` is NVLink or a TPU's interconnect, one way.
ACCELERATORS: Mapping[str, Accelerator] = {
    "a100": _gpu(
        "NVIDIA A100-SXM4-80GB",
        (19.5, 156, 312),
        2.039,
        85_100_068_864,
        300,
        Gpu((8, 0), cores=108, fpus=64, clock=1.41, shared=167_936, cache=41_943_040),
    ),
    "h100": _gpu(
        "NVIDIA H100 80GB HBM3",
        (66.9, 494.7, 989.4),
        3.352,
        84_942_979_072,
        450,
        Gpu((9, 0), cores=132, fpus=128, clock=1.98, shared=233_472, cache=52_428_800),
    ),
    "h200": _gpu(
        "NVIDIA H200 141GB HBM3e",
        (66.9, 494.7, 989.4),
        4.8,
        151_397_597_184,
        450,
        Gpu((9, 0), cores=132, fpus=128, clock=1.98, shared=233_472, cache=52_428_800),
    ),
    "v4": _tpu("TPU v4", 275, 1228, 32, 50),
    "v5e": _tpu("TPU v5e", 197, 819, 16, 50),
    "v5p": _tpu("TPU v5p", 459, 2765, 95, 100),
    "v6e": _tpu("TPU v6e", 918, 1638, 32, 100),
}


def described(name: str) -> tuple[Accelerator, Sequence[jax.Device]]:
    """An accelerator and its devices, for which XLA can compile, but which need not be here.

    Args:
      name: ``h100``, ``h100:8`` for several in a machine, or ``v5e:2x2`` for a slice of TPUs.

    Raises:
      InputError: there is no such name, or a package that compiles for it is missing.
    """
    kind, _, shape = name.partition(":")
    accelerator = ACCELERATORS.get(kind)
    if accelerator is None:
        raise InputError(f"--compile-for {name}: choose among {', '.join(ACCELERATORS)}")
    if accelerator.platform == "tpu":
        if not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
            raise InputError(f"--compile-for {name}: name the slice's shape as well, such as {kind}:2x2")
        needed, options = {"libtpu": "jax[tpu]"}, {"topology_name": name}
    else:
        if not re.fullmatch(r"[1-8]?", shape):
            raise InputError(f"--compile-for {name}: a machine has 1 to 8 GPUs, such as {kind}:8")
        cuda = next((version for version in (13, 12) if _is_there(f"jax_cuda{version}_plugin")), 13)
        needed = {f"jax_cuda{cuda}_plugin": f"jax[cuda{cuda}]"}
        options = {
            "target_config": target_config(accelerator, cuda),
            "topology": f"1x1x{shape or 1}",
        }
    missing = [package for module, package in needed.items() if not _is_there(module)]
    if missing:
        raise InputError(f"--compile-for {name} needs a package that is not here: pip install '{missing[0]}'")
    if accelerator.platform == "tpu":
        for variable, value in _NO_TPU_HERE.items():
            os.environ.setdefault(variable, value)
    try:
        topology = topologies.get_topology_desc(platform=accelerator.platform, **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"--compile-for {name}: {str(error).splitlines()[0][:300]}") from None
    return accelerator, topology.devices


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def target_config(accelerator: Accelerator, cuda: int) -> str:
    """The description that XLA reads, a ``GpuTargetConfigProto`` as text. `cuda` is the version to compile for."""
    gpu = accelerator.gpu
    assert gpu is not None
    values: dict[str, Any] = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.shared - 1024,
        "threads_per_core_limit": 2048,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(accelerator.bandwidth),
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": accelerator.memory,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
    }
    info = "\n".join(f"  {name}: {value}" for name, value in values.items())
    major, minor = gpu.capability
    return f"""gpu_device_info {{
{info}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: {cuda} minor: 0 patch: 0 }}
device_description_str: "{accelerator.name}"
"""
