"""Records as text: one line each, and geometric means of groups."""

from .peers import OURS, SAVE_GATES
from .results import Record
from .timing import geometric_mean

HEADER = (
    f"{'case':<44}{'torch.nn':>10}{'onnxrt':>10}{'seqkern':>10}"
    f"{'speed-up [quartiles]':>24}{'roofline':>10}"
)


def duration(seconds: float) -> str:
    """Three digits and a unit: 12.3us, 4.56ms, 1.23s."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g}{unit}"
    return f"{seconds:.3g}s"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def verdict(record: Record) -> str:
    if record.case.at_least is None:
        return ""
    return f"{'MISSED' if record.missed else 'ok'} (at least {record.case.at_least:g}x)"


def line(record: Record) -> str:
    low, middle, high = record.speedup()
    times = [
        duration(record.median(name)) if name in record.seconds else "-"
        for name in ("torch.nn", "onnxruntime", OURS)
    ]
    speedup = f"{middle:.2f}x [{low:.2f} {high:.2f}]"
    text = f"{record.case.name:<44}" + "".join(f"{time:>10}" for time in times)
    return f"{text}{speedup:>24}{percent(record.share()) or '-':>10}  {verdict(record)}".rstrip()


def summary(records: list[Record]) -> list[tuple[str, int, float, float]]:
    """Per group of cases: its name, how many, geometric mean and least of the speed-up."""
    groups: dict[str, list[float]] = {}
    for record in records:
        case = record.case
        kind = "packed" if case.packed else "padded"
        if case.save != "gates":
            kind += f" {case.save}"
        name = f"{case.cell} {case.mode} {kind} {case.dtype} {case.where}"
        for peer in ("torch.nn", "onnxruntime", SAVE_GATES):
            if peer in record.seconds:
                groups.setdefault(f"{name}, over {peer}", []).append(record.speedup(peer)[1])
    return [(name, len(all_), geometric_mean(all_), min(all_)) for name, all_ in groups.items()]
