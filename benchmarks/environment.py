"""Where figures come from: machine, versions, build."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path


def _first(pattern: str, path: str, otherwise: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        found = None
    return found[1].strip() if found else otherwise


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout, with a + where tracked files differ from it."""
    root = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def environment(device: str = "cpu") -> dict:
    import torch

    import seqkern

    from . import device as gpu

    return {
        "cpu": _first(r"model name\s*:(.*)", "/proc/cpuinfo", platform.processor()),
        "cores": os.cpu_count(),
        "l2": _first(r"(.*)", "/sys/devices/system/cpu/cpu0/cache/index2/size", "unknown"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "seqkern": _version("seqkern"),
        "seqkern_capability": seqkern.cpu_capability(),
        "onnxruntime": _version("onnxruntime"),
        "commit": _commit(),
        **gpu.environment(device),
    }


def differences(one: dict, other: dict) -> list[str]:
    """The entries in which two environments differ, in words."""
    keys = dict.fromkeys([*one, *other])
    return [
        f"{key}: {one.get(key)} and {other.get(key)}"
        for key in keys
        if one.get(key) != other.get(key)
    ]
