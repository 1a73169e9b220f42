import os

import pytest
import torch

import seqkern
from seqkern import _C, ops

pytest.register_assert_rewrite("programs.table")

CAPABILITIES = ("default", "avx2", "avx512")
# Small tensors are slower with two threads, by far so where other programs keep the cores busy.
# test_threads.py and the larger layers of other tests choose their own number.
_THREADS = 1
torch.set_num_threads(_THREADS)
_C.ignore_pass_flops(True)  # what is tested with several threads is small


@pytest.fixture(autouse=True)
def _same_start():
    """Each test starts with one seed, the default dtype and one thread."""
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(_THREADS)


@pytest.fixture(params=CAPABILITIES)
def capability(request):
    """The kernels of one SIMD level; skips levels that this machine or build does not have."""
    if request.param not in seqkern.cpu_capabilities():
        pytest.skip(f"no {request.param} kernels here, only {seqkern.cpu_capabilities()}")
    with seqkern.use_cpu_capability(request.param):
        yield request.param


@pytest.fixture(params=("cpu", "cuda"))
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def _no_cuda() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    return "" if ops.CUDA_KERNELS else "this build has no CUDA kernels"


@pytest.fixture(params=("cpu", "cuda"))
def kernel_device(request):
    """Each device whose kernels can run here."""
    if request.param == "cuda" and (reason := _no_cuda()):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def cuda():
    """For what only a GPU has."""
    if reason := _no_cuda():
        pytest.skip(reason)
    return "cuda"


@pytest.fixture
def float64():
    """float64 as the default dtype: for tests of behaviour, where rounding is beside the point."""
    torch.set_default_dtype(torch.float64)


def pytest_report_header():
    forced = os.environ.get("SEQKERN_CPU_CAPABILITY")
    reason = _no_cuda()
    gpu = f"not run ({reason})" if reason else f"run on {torch.cuda.device_count()} GPUs"
    return (
        f"seqkern: CPU kernels {seqkern.cpu_capabilities()}, in use {seqkern.cpu_capability()}"
        f"{' (forced)' if forced else ''}; CUDA kernels {gpu}; torch {torch.__version__}, {_THREADS} threads"
    )
