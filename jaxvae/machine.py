"""The processor that this process runs on."""

import os
import platform
import subprocess
import sys
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# Lines of Linux's /proc/cpuinfo that say what a processor is and which instructions it has, on x86, Arm and others.
_KINDS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
    *("cpu", "machine", "isa", "uarch", "features"),
)


def processor() -> dict[str, str]:
    """What identifies the processor: its name, and its instructions if the operating system lists them."""
    found = {"machine": platform.machine(), "processor": platform.processor()}
    try:
        first, _, _ = CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")
    except OSError:
        first = ""
    fields = (line.partition(":") for line in first.splitlines())
    found |= {name: value.strip() for name, _, value in ((n.strip(), _, v) for n, _, v in fields) if name in _KINDS}
    if sys.platform == "darwin":
        name = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        found["model name"] = name.stdout.strip()
    return found


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
