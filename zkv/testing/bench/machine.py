"""Where a figure comes from: without it a figure means nothing.

Owns: the machine line. Must not know: benchmarks.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import zkv

_PACKAGES: Final = ("pyzmq", "msgpack", "redis", "hiredis")


def machine() -> dict[str, Any]:
    """Cores, Python, versions, and the commit if this package runs from a checkout."""
    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "zkv": zkv.__version__,
        "commit": _commit(),
        "packages": packages,
    }


def machine_line(facts: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    commit = f" ({facts['commit']})" if facts["commit"] else ""
    return (
        f"zkv {facts['zkv']}{commit}, {facts['cores']} cores, load {facts['load']}, {facts['system']}, "
        f"Python {facts['python']}, {packages}"
    )


def _commit() -> str | None:
    root = Path(zkv.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except FileNotFoundError:
        return None
    return said.stdout.strip() or None
