"""What next_word.py prints: checks, loss curves, speeds, and times over sequence lengths."""

from benchmarks.cases import LAYERS, Case
from benchmarks.progress import Progress
from benchmarks.run import WrongResult, time_case
from benchmarks.table import duration
from benchmarks.timing import quartiles, speedups

from .model import Trainer


class Checks:
    """Counts what was checked; each check prints its line."""

    def __init__(self):
        self.passed = self.failed = 0

    def add(self, good: bool, what: str) -> None:
        print(f"  [{'pass' if good else 'FAIL'}] {what}")
        self.passed += good
        self.failed += not good

    @property
    def exit_status(self) -> int:
        return 1 if self.failed or not self.passed else 0

    def summary(self) -> str:
        return f"{self.passed} checks passed, {self.failed} failed"


def shown_steps(count: int) -> list[int]:
    """Places of a curve to print: the first and every tenth up to 50, then six more."""
    places = {0, *range(9, min(count, 50), 10), count - 1}
    places |= {49 + (count - 50) * part // 6 for part in range(1, 6) if count > 50}
    return sorted(places)


def loss_curves(theirs: list[float], ours: list[float]) -> str:
    lines = [f"{'step':>8}{'torch.nn':>12}{'seqkern':>12}{'difference':>12}  loss of seqkern"]
    for place in shown_steps(len(ours)):
        a, b = theirs[place], ours[place]
        bar = "#" * round(5 * b)
        lines.append(f"{place + 1:>8}{a:>12.5f}{b:>12.5f}{abs(a - b) / abs(a):>12.1e}  {bar}")
    return "\n".join(lines)


def middle(values: list[float]) -> float:
    return quartiles(values)[1]


def speed(trainers: dict[str, Trainer], words: int) -> str:
    """Medians over the steps; the last line is the median of the ratios, step by step."""
    parts = {
        name: {
            "forward": t.forward_seconds,
            "backward": t.backward_seconds,
            "layers": [f + b for f, b in zip(t.forward_seconds, t.backward_seconds, strict=True)],
            "step": t.step_seconds,
        }
        for name, t in trainers.items()
    }
    for part in parts.values():
        part["rest"] = [s - r for s, r in zip(part["step"], part["layers"], strict=True)]
    keys = ("forward", "backward", "rest", "step")
    heads = ("layers fwd", "layers bwd", "the rest", "whole step")
    header = "".join(f"{head:>12}" for head in heads)
    lines = [f"{'':<11}{header}{'words/s':>10}{'words/s in the layers':>24}"]
    for name, part in parts.items():
        times = "".join(f"{duration(middle(part[key])):>12}" for key in keys)
        rates = words / middle(part["step"]), words / middle(part["layers"])
        lines.append(f"{name:<11}{times}{rates[0]:>10.0f}{rates[1]:>24.0f}")
    a, b = parts["torch.nn"], parts["seqkern"]
    ratios = {key: middle(speedups(a[key], b[key])) for key in (*keys, "layers")}
    lines.append(
        f"{'speed-up':<11}"
        + "".join(f"{ratios[key]:>11.2f}x" for key in keys)
        + f"{ratios['step']:>9.2f}x{ratios['layers']:>23.2f}x"
    )
    return "\n".join(lines)


def times_over_lengths(lengths, threads: int, seconds: float, checks: Checks) -> None:
    """Forward and training times of each layer against torch.nn, timed in turns."""
    modes = {"infer": "forward", "train": "forward and backward"}
    cases = [
        Case(cell, mode, T, 16, 128, threads=threads)
        for mode in modes
        for T in lengths
        for cell in LAYERS
    ]
    bar, records = Progress(len(cases), "times"), {}
    wrong = []
    for done, case in enumerate(cases):
        bar.update(done, case.name)
        try:
            records[case] = time_case(case, ["torch.nn"], seconds)
        except WrongResult as error:
            wrong.append(str(error))
    bar.clear()
    for mode, title in modes.items():
        print(f"\n{title}, batch 16, size 128, float32, {threads} threads")
        print(f"{'':>8}" + "".join(f"{cell:^32}" for cell in LAYERS).rstrip())
        heads = f"{'torch.nn':>12}{'seqkern':>10}{'':>10}"
        print(f"{'length':>8}" + (heads * len(LAYERS)).rstrip())
        for T in lengths:
            line = f"{T:>8}"
            for record in (records.get(c) for c in cases if (c.mode, c.T) == (mode, T)):
                if record is None:
                    line += f"{'wrong result':>32}"
                    continue
                a, b = (duration(record.median(name)) for name in ("torch.nn", "seqkern"))
                line += f"{a:>12}{b:>10}{record.speedup()[1]:>9.2f}x"
            print(line)
    checks.add(not wrong, "results of the timed layers agree" + "".join(f"\n{w}" for w in wrong))
