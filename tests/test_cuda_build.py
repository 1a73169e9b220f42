"""A build with CUDA on a machine that need not have a GPU: `make cuda-build`."""

import pytest
import torch
from layers import CELLS, Case, check_levels

from seqkern import ops

pytestmark = pytest.mark.skipif(
    not ops.CUDA_KERNELS, reason="this build has no CUDA kernels (make cuda-build)"
)


TABLES = (ops.FORWARD, ops.BACKWARD, ops.STEP, ops.PACK, ops.STREAM_STEP)


@pytest.mark.parametrize("op", [op for table in TABLES for op in table.values()], ids=str)
def test_every_op_has_a_cuda_kernel(op):
    name = op.name()
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, "XPU")


@pytest.mark.parametrize("cell", CELLS)
def test_the_cpu_kernels_are_as_in_other_builds(cell):
    check_levels(Case(cell, T=4, B=3, I=5, H=19, D=2), torch.float32)
