"""What fits in the memory of a device or of this machine, and out-of-memory errors."""

import math
import os
import re
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxvae.errors import InputError

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free_bytes(device: jax.Device) -> int:
    """Free memory of an accelerator, or of this machine if the device is a CPU."""
    stats = device_stats(device)
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return host_free_bytes()


def device_stats(device: jax.Device) -> Mapping[str, int] | None:
    """What the device's allocator says, in bytes; None for a CPU, and for a device that is only compiled for."""
    try:
        stats: Mapping[str, int] | None = device.memory_stats()
    except jax.errors.JaxRuntimeError:
        if device in jax.local_devices():
            raise
        return None
    return stats


def host_free_bytes() -> int:
    """Memory that this process can still get: the least that the machine, its control groups and its limit leave."""
    free = [*_machine(), *_control_groups(), *_address_space()]
    return max(min(free), 0)


def _machine() -> Sequence[int]:
    try:
        fields = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
        return [1024 * sum(int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree"))]
    except (OSError, ValueError, KeyError):  # Not Linux.
        return [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]


def _control_groups() -> Sequence[int]:
    """Free memory of this process's control group and its parents, version 1 or 2; in a container, of its own."""
    free = []
    try:
        lines = [line.split(":", 2) for line in (PROC / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        root, limit, usage = (
            (CGROUPS, "memory.max", "memory.current")
            if not controllers
            else (CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(root):
                break
            try:
                most, used = int((directory / limit).read_text()), int((directory / usage).read_text())
                parts = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
                # Pages of files, which the kernel reclaims first.
                spare = int(parts["inactive_file"])
            except (OSError, ValueError, KeyError):  # No such group here, or "max".
                continue
            free.append(most - used + spare)
    return free


def _address_space() -> Sequence[int]:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return []
    try:
        used = int((PROC / "self" / "statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        used = 0
    return [most - used]


def required_bytes(
    state: Any, image_shape: Sequence[int], share: int, samples: int, part: int | None = None
) -> dict[str, int]:
    """The least memory of a device that training takes, in bytes, by purpose.

    Args:
      state: the train state, or its shapes and dtypes.
      image_shape: (H, W, C).
      share: images of a batch on the device.
      samples: reconstructions per image.
      part: images of the share that are computed at a time; None: all.

    Returns:
      "state": the parameters, their gradient and the optimiser's state; "batch": the images of a batch and the
      reconstructions of a part, float32.
    """
    return {
        "state": _nbytes(state) + _nbytes(state.params),
        "batch": (share + (part or share) * samples) * math.prod(image_shape) * 4,
    }


def _nbytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_fits(required: Mapping[str, int], images: int, devices: Sequence[jax.Device]) -> None:
    """Refuse, before anything is compiled, a model or a batch that certainly does not fit in memory.

    Args:
      required: bytes on each device, as from `required_bytes`.
      images: bytes of the images, which each device must hold.
      devices: only those of this process are checked.

    Raises:
      InputError: it does not fit, in one line with the numbers and what to lower.
    """
    here = [device for device in devices if device.process_index == jax.process_index()]
    # On a CPU the images are in memory already, and all devices share it.
    on_cpu = device_stats(here[0]) is None
    parts = dict(required) if on_cpu else {**required, "images": images}
    copies = len(here) if on_cpu else 1
    free = free_bytes(here[0])
    if copies * sum(parts.values()) <= free:
        return
    listed = ", ".join(f"{in_words(size)} for the {name}" for name, size in parts.items())
    each = f" on each of {copies} devices" if copies > 1 else ""
    flag = "--hidden" if required["state"] >= required["batch"] else "--batch-size"
    raise InputError(
        f"{flag} is too large for the memory: training takes at least {listed}{each}, and {in_words(free)} are free on "
        f"{'this machine' if on_cpu else here[0].device_kind}; lower --hidden or --batch-size"
    )


def images_fit(required: Mapping[str, int], images: int, devices: Sequence[jax.Device]) -> bool:
    """Whether all images fit on each device, beside what is `required`. On a CPU, they are in memory already."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    return device_stats(here[0]) is None or sum(required.values()) + images <= free_bytes(here[0])


def shortage(error: BaseException) -> str | None:
    """A line for an out-of-memory error, of a device or of the machine; None for any other error."""
    if isinstance(error, MemoryError):
        free = host_free_bytes()
    elif isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        free = free_bytes(jax.local_devices()[0])
    else:
        return None
    said = str(error).partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:300]
    asked = re.sub(r"\b\d{4,}(?= bytes)", lambda n: f"{in_words(int(n[0]))}, {n[0]}", said) or "Python needs more"
    return f"not enough memory: {asked}; {in_words(free)} are free: lower --batch-size, --hidden or --samples"


def in_words(size: int) -> str:
    """A size in bytes, for people."""
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB") if size >= 2**20 else (2**10, "KiB")
    return f"{size / unit:,.1f} {name}"
