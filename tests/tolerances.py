"""The one tolerance rule of the numerical tests.

The reference is float64. The error, in the norm of the whole tensor, may be twice that of torch.nn
in the same dtype on the same input plus 16 * eps * norm(reference). Where torch has no kernel in a
dtype, its float32 result rounded stands in
for it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check(actual: Tensor, reference: Tensor, torchs: Tensor, what: str = "result") -> None:
    """Asserts the rule: actual and torchs (torch.nn's result) in one dtype, reference in
    float64."""
    assert reference.dtype == torch.float64, f"{what}: reference must be float64"
    assert actual.dtype == torchs.dtype, f"{what}: {actual.dtype} instead of {torchs.dtype}"
    assert actual.shape == reference.shape, f"{what}: {actual.shape} instead of {reference.shape}"
    assert torch.isfinite(reference).all(), f"{what}: the rule is for finite references"
    error = torch.linalg.vector_norm(actual.double() - reference).item()
    torch_error = torch.linalg.vector_norm(torchs.double() - reference).item()
    floor = 16 * torch.finfo(actual.dtype).eps * torch.linalg.vector_norm(reference).item()
    assert error <= 2 * torch_error + floor, (
        f"{what}: error {error:.3e}, torch's {torch_error:.3e}, floor {floor:.3e}"
    )


def check_all(actual: dict, reference: dict, torchs: dict, what: str = "") -> None:
    """The rule for named results."""
    assert actual.keys() == reference.keys() == torchs.keys()
    for name, value in actual.items():
        check(value, reference[name], torchs[name], what + name)


def check_agree(actual: Tensor, other: Tensor, what: str = "result") -> None:
    """Of two of our paths in one dtype: they differ by at most 4 eps of the norm."""
    assert actual.dtype == other.dtype, f"{what}: {actual.dtype} and {other.dtype}"
    difference = torch.linalg.vector_norm(actual.double() - other.double()).item()
    most = 4 * torch.finfo(actual.dtype).eps * torch.linalg.vector_norm(actual.double()).item()
    assert difference <= most, f"{what}: difference {difference:.3e}, at most {most:.3e}"


def check_no_worse(actual: Tensor, reference: Tensor, other: Tensor, what: str = "result") -> None:
    """The error is at most twice that of another of our paths, without a floor."""
    errors = [torch.linalg.vector_norm(t.double() - reference).item() for t in (actual, other)]
    assert errors[0] <= 2 * errors[1], f"{what}: error {errors[0]:.3e}, the other's {errors[1]:.3e}"
