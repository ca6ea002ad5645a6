"""The environment of a run: the CPU, the system, and the versions of everything compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import fastrnn

from .peers import PEERS

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def machine() -> dict[str, Any]:
    """Return plain data; information that the system does not provide is None, or missing among the caches."""
    packages = dict.fromkeys(("numpy", *(peer.package for peer in PEERS.values())))
    return {
        **cpu(CPUINFO.read_text() if CPUINFO.is_file() else ""),
        "cores": os.cpu_count(),
        "caches": caches(CACHES),
        "system": platform.platform(),
        "python": platform.python_version(),
        "fastrnn": fastrnn.config(),
        "versions": {name: version(name) for name in packages},
    }


def cpu(cpuinfo: str) -> dict[str, str | None]:
    """Return the CPU's name, vendor and model number from Linux' /proc/cpuinfo, otherwise only Python's name for it."""
    lines = [line.partition(":") for line in cpuinfo.partition("\n\n")[0].split("\n")]
    found = {key.strip(): value.strip() for key, _, value in lines}
    family, model = found.get("cpu family"), found.get("model")
    return {
        "processor": found.get("model name") or platform.processor() or platform.machine(),
        "vendor": found.get("vendor_id"),
        "model": f"family {family}, model {model}" if family and model else None,
    }


def caches(root: Path) -> dict[str, str]:
    """Return the sizes of the first CPU's caches by name, as Linux reports them: {"L1d": "48K", "L2": "2048K"}."""
    found = {}
    for place in sorted(root.glob("index*")):
        level, kind, size = ((place / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return found


def described(machine: dict[str, Any]) -> str:
    """Describe the CPU in a line, for the screen, the report and the chart."""
    known = [machine["processor"], machine["vendor"], machine["model"], f"{machine['cores']} cores"]
    sizes = [f"{name} {size}" for name, size in machine["caches"].items()]
    return ", ".join([*filter(None, known), *sizes])


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
