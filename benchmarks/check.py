"""Results are compared before anything is timed: a fast wrong answer is no answer."""

from tests import tolerances

from .cases import Case
from .peers import reference_run


def disagreements(case: Case, runs: dict) -> dict[str, str]:
    """What is wrong with the results of each run that is wrong, by the rule of the tests.

    The reference is torch.nn in float64; torch.nn's own result in the case's dtype is the measure.
    """
    references = [tensor.detach() for tensor in reference_run(case)()]
    measure = [tensor.detach() for tensor in runs["torch.nn"]()]
    wrong = {}
    for name, run in runs.items():
        # Each runs once: a run in mode step leaves another state behind.
        results = measure if name == "torch.nn" else [tensor.detach() for tensor in run()]
        if len(results) != len(references):
            wrong[name] = f"{len(results)} results, expected {len(references)}"
            continue
        triples = zip(results, references, measure, strict=True)
        for place, (result, reference, torchs) in enumerate(triples):
            try:
                tolerances.check(result, reference, torchs, f"result {place}")
            except AssertionError as error:
                wrong[name] = str(error)
                break
    return wrong
