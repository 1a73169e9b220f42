"""What got faster and slower between two runs, and whether by more than noise."""

from dataclasses import dataclass
from pathlib import Path

from .environment import differences
from .results import Record, Results
from .timing import geometric_mean

LEAST = 0.02  # smaller changes are not called one


@dataclass
class Change:
    name: str
    ratio: float  # above 1: faster
    verdict: str  # faster, slower or same


def change(a: Record, b: Record) -> Change:
    """Compares speed-ups over torch.nn, timed in turns: a busier machine cancels out.

    A change is called one only if the quartile ranges do not meet and it exceeds `LEAST`.
    """
    low_a, middle_a, high_a = a.speedup()
    low_b, middle_b, high_b = b.speedup()
    ratio = middle_b / middle_a
    verdict = "same"
    if low_b > high_a and ratio > 1 + LEAST:
        verdict = "faster"
    elif high_b < low_a and ratio < 1 / (1 + LEAST):
        verdict = "slower"
    return Change(a.case.name, ratio, verdict)


def changes(a: Results, b: Results) -> list[Change]:
    """Of the cases that both have, slowest first."""
    both = [name for name in a.records if name in b.records]
    return sorted((change(a.records[n], b.records[n]) for n in both), key=lambda c: c.ratio)


def compare(path_a: Path, path_b: Path) -> int:
    a, b = Results.load(path_a), Results.load(path_b)
    for difference in differences(a.environment, b.environment):
        print(f"differs: {difference}")
    found = changes(a, b)
    if not found:
        raise SystemExit(f"{path_a} and {path_b} have no case in common")
    for verdict in ("slower", "faster", "same"):
        group = [c for c in found if c.verdict == verdict]
        print(f"\n{verdict}: {len(group)}")
        for c in group:
            print(f"  {c.name:<48}{c.ratio:6.2f}x")
    alone = len(a.records) + len(b.records) - 2 * len(found)
    mean = geometric_mean([c.ratio for c in found])
    print(f"\n{len(found)} cases, geometric mean {mean:.3f}x; {alone} cases in one file only")
    return 0
