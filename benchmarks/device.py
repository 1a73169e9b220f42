"""Cases on a GPU: what there must be, where tensors go, and when a timing begins and ends."""

import time
from collections.abc import Callable

import torch

from .cases import Case


def require(device: str) -> None:
    """One line where cases can't run there."""
    if device == "cpu":
        return
    from seqkern.ops import CUDA_KERNELS

    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch sees no GPU here")
    if not CUDA_KERNELS:
        raise SystemExit(
            "--device cuda: this build of seqkern has no CUDA kernels; SEQKERN_CUDA=on builds them "
            "or says what is missing"
        )
    # The same arithmetic for both: seqkern's float32 is TF32 only where matmul.allow_tf32 asks.
    torch.backends.cudnn.allow_tf32 = False


def place(value, case: Case):
    """A tensor or module of the case, where the case runs."""
    return value.to(case.device)


def synchronize() -> None:
    torch.cuda.synchronize()


def clock(case: Case) -> Callable[[], float]:
    """Seconds, read once the device has done all that it was given."""
    if case.device == "cpu":
        return time.perf_counter

    def now() -> float:
        synchronize()
        return time.perf_counter()

    return now


def environment(device: str) -> dict:
    """What figures from there depend on beside the machine."""
    if device == "cpu":
        return {}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
