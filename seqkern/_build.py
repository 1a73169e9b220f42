"""Loads the extension, or says in one sentence why it can't be loaded and what to do."""

from __future__ import annotations

import importlib
import itertools
import os
import sys

REBUILD = "run `pip install --no-build-isolation --no-deps -e .` in a checkout of seqkern"
CAPABILITY_VARIABLE = "SEQKERN_CPU_CAPABILITY"


class LoadError(ImportError):
    """Why seqkern can't run here, and the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}: {remedy}")
        self.problem = problem
        self.remedy = remedy


def load() -> None:
    """Import ``seqkern._C``, which registers ``torch.ops.seqkern``.

    Raises:
        LoadError: torch is missing or is not the one built against, the extension is missing or
            does not load, or ``SEQKERN_CPU_CAPABILITY`` names a level that is not there.
    """
    try:
        import torch
    except ImportError as error:
        raise LoadError(
            f"seqkern needs PyTorch, which does not import ({error})", "run `pip install torch`"
        ) from None
    # Before the library is loaded: against another torch it may crash instead of failing.
    try:
        info = importlib.import_module("seqkern._build_info")
    except ImportError:
        raise LoadError("seqkern's extension is not built", REBUILD) from None
    # The part after "+" says where torch came from ("cpu", "cu130"), not another C++ interface.
    running = str(torch.__version__).split("+")[0]
    if running != info.TORCH_VERSION:
        raise LoadError(
            f"seqkern was built against torch {info.TORCH_VERSION}, but torch {running} is running",
            f"{REBUILD} or `pip install torch=={info.TORCH_VERSION}`",
        )
    try:
        extension = importlib.import_module("seqkern._C")
    except ImportError as error:
        raise LoadError(f"seqkern's extension does not load ({error})", REBUILD) from None
    level = os.environ.get(CAPABILITY_VARIABLE)
    if level:
        try:
            extension.set_cpu_capability(level)
        except RuntimeError as error:
            raise LoadError(
                f"{CAPABILITY_VARIABLE}: {error}",
                f"unset {CAPABILITY_VARIABLE} or name one of these levels",
            ) from None


def is_command() -> bool:
    """Whether this process is ``python -m seqkern``, whose doctor reports what load() raises."""
    return ("-m", "seqkern") in itertools.pairwise(sys.orig_argv)
