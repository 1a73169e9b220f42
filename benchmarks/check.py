"""Results are compared before anything is timed: a fast wrong answer is no answer."""

import torch
from torch import Tensor

from .cases import Case
from .peers import dtype_of, reference_run


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference, in float64."""
    if result.shape != reference.shape:
        raise ValueError(f"shape {tuple(result.shape)}, expected {tuple(reference.shape)}")
    result, reference = result.detach(), reference.detach()
    norm = float(reference.norm())
    return float((result.double() - reference).norm()) / (norm if norm > 0 else 1.0)


def errors(results: list[Tensor], references: list[Tensor]) -> list[float]:
    if len(results) != len(references):
        raise ValueError(f"{len(results)} results, expected {len(references)}")
    return [relative_error(r, f) for r, f in zip(results, references, strict=True)]


def allowed(peer_error: float, dtype: torch.dtype) -> float:
    """Twice the error of torch.nn on the same input, plus 16 eps."""
    return 2 * peer_error + 16 * torch.finfo(dtype).eps


def disagreements(case: Case, runs: dict) -> dict[str, str]:
    """What is wrong with the results of each run that is wrong; torch.nn sets the measure."""
    references = reference_run(case)()
    measure = errors(runs["torch.nn"](), references)
    wrong = {}
    for name, run in runs.items():
        try:
            found = errors(run(), references)
        except ValueError as error:
            wrong[name] = str(error)
            continue
        for place, (error, peer) in enumerate(zip(found, measure, strict=True)):
            limit = allowed(peer, dtype_of(case))
            if not error <= limit:  # a NaN is wrong too
                wrong[name] = f"result {place}: relative error {error:.2g}, allowed {limit:.2g}"
    return wrong
