"""A Markdown table and PNG plots of one or more result files."""

from pathlib import Path

from . import plots
from .peers import OURS
from .results import Record, Results
from .run import rates_text
from .table import duration, percent, summary


def row(cells) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table(header: list[str], rows) -> list[str]:
    return [row(header), row(["---"] * len(header)), *(row(cells) for cells in rows)]


def case_row(record: Record) -> list[str]:
    low, middle, high = record.speedup()
    times = [
        duration(record.median(name)) if name in record.seconds else ""
        for name in ("torch.nn", "onnxruntime", "python loop", OURS)
    ]
    shares = [percent(record.share("torch.nn")), percent(record.share())]
    return [record.case.name, *times, f"{middle:.2f}x ({low:.2f} to {high:.2f})", *shares]


def memory_row(record: Record) -> list[str]:
    theirs, ours = record.memory["torch.nn"], record.memory[OURS]
    cells = [record.case.name]
    for key in ("held", "peak"):
        ratio = f"{ours[key] / theirs[key]:.2f}" if theirs[key] else ""
        cells += [f"{theirs[key] / 2**20:.1f}", f"{ours[key] / 2**20:.1f}", ratio]
    return cells


def markdown(results: Results, images: list[str]) -> str:
    records = list(results.records.values())
    lines = ["# Benchmark results", ""]
    lines += [f"{key} {value}  " for key, value in results.environment.items()]
    lines += ["", *(f"{text}  " for text in rates_text(records)), ""]
    lines += [
        "Times are medians of rounds in which the implementations took turns. The speed-up is over",
        "torch.nn, round by round: median (quartiles). Roofline: the part of what the machine",
        "allows that torch.nn and seqkern reach.",
        "",
    ]
    means = [
        [n, count, f"{mean:.2f}x", f"{least:.2f}x"] for n, count, mean, least in summary(records)
    ]
    lines += table(["speed-up of", "cases", "geometric mean", "least"], means) + [""]
    names = ["torch.nn", "onnxruntime", "python loop", OURS]
    header = ["case", *names, "speed-up", "torch.nn of roofline", f"{OURS} of roofline"]
    lines += table(header, map(case_row, records)) + [""]
    weighed = [record for record in records if record.memory]
    if weighed:
        lines += ["Memory of a training step in MiB: held between forward and backward, and at its"]
        lines += ["peak in a fresh process.", ""]
        header = ["case", "torch.nn held", f"{OURS} held", "ratio"]
        header += ["torch.nn peak", f"{OURS} peak", "ratio"]
        lines += table(header, map(memory_row, weighed)) + [""]
    lines += [f"![{name}]({name})" for name in images]
    return "\n".join(lines).rstrip() + "\n"


def report(paths: list[Path], folder: Path) -> int:
    results = Results.load(paths[0])
    for path in paths[1:]:
        results.records.update(Results.load(path).records)
    if not results.records:
        raise SystemExit(f"{paths[0]} has no finished case")
    folder.mkdir(parents=True, exist_ok=True)
    images = plots.draw(list(results.records.values()), folder)
    target = folder / "report.md"
    target.write_text(markdown(results, images))
    print(*[target, *(folder / name for name in images)], sep="\n")
    return 0
