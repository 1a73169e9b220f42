"""The SIMD level that the CPU kernels use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from seqkern import _C


def cpu_capabilities() -> list[str]:
    """The levels that this build has and this machine can run, lowest first.

    A part of ``["default", "avx2", "avx512"]``; ``"default"`` is always there.

    >>> "default" in seqkern.cpu_capabilities()
    True
    """
    return _C.cpu_capabilities()


def cpu_capability() -> str:
    """The level in use: the highest one, unless ``SEQKERN_CPU_CAPABILITY`` or
    :func:`use_cpu_capability` chose another.

    >>> seqkern.cpu_capability() in seqkern.cpu_capabilities()
    True
    """
    return _C.cpu_capability()


@contextmanager
def use_cpu_capability(name: str) -> Iterator[None]:
    """Run the kernels of one level, in all threads of this process, until the block ends.

    Raises RuntimeError for a level that is not in :func:`cpu_capabilities`.

    >>> with seqkern.use_cpu_capability("default"):
    ...     output, h_n = seqkern.GRU(3, 4)(torch.randn(5, 2, 3))
    """
    before = _C.cpu_capability()
    _C.set_cpu_capability(name)
    try:
        yield
    finally:
        _C.set_cpu_capability(before)
