"""The plots of a report: time against T and H, speed-up over B and H, and the roofline."""

from collections.abc import Callable
from pathlib import Path

from .cases import LAYERS, SHORT
from .peers import OURS, PEERS
from .results import Record
from .roofline import flops, itemsize, share

COLOURS = {OURS: "tab:red", "torch.nn": "tab:gray", "onnxruntime": "tab:blue", "python loop": "tan"}
MARKERS = dict(zip(LAYERS, "osv", strict=True))


def plain(record: Record) -> bool:
    """One unidirectional padded float32 layer."""
    case = record.case
    return (
        case.cell in LAYERS
        and (case.dtype, case.layers, case.bidirectional, case.packed, case.save)
        == ("float32", 1, False, False, "gates")
    )  # fmt: skip


def series(records: list[Record], axis: str) -> dict[tuple, list[Record]]:
    """Groups of plain records that differ in `axis` alone; the longest group per cell and mode."""
    groups: dict[tuple, list[Record]] = {}
    for record in filter(plain, records):
        case = record.case
        fixed = tuple((k, getattr(case, k)) for k in ("T", "B", "H", "where") if k != axis)
        groups.setdefault((case.cell, case.mode, fixed), []).append(record)
    longest: dict[tuple, tuple] = {}
    for key, group in groups.items():
        if len(group) > len(groups.get(longest.get(key[:2]), [])):
            longest[key[:2]] = key
    return {
        key: sorted(groups[key], key=lambda r: getattr(r.case, axis))
        for key in longest.values()
        if len(groups[key]) >= 3
    }


def plot_lines(plt, records: list[Record], axis: str):
    """Time against T or H: a panel per cell and mode."""
    groups = series(records, axis)
    if not groups:
        return None
    cells = [cell for cell in LAYERS if any(key[0] == cell for key in groups)]
    modes = list(dict.fromkeys(key[1] for key in groups))
    figure, panels = plt.subplots(
        len(modes), len(cells), figsize=(4 * len(cells), 3.2 * len(modes)), squeeze=False
    )
    for panel in panels.flat:
        panel.set_visible(False)
    for (cell, mode, fixed), group in groups.items():
        panel = panels[modes.index(mode)][cells.index(cell)]
        panel.set_visible(True)
        for name in (*PEERS, OURS):
            points = [
                (getattr(r.case, axis), 1e3 * r.median(name)) for r in group if name in r.seconds
            ]
            if points:
                style = "o" if len(points) == 1 else "o-"
                panel.loglog(*zip(*points, strict=True), style, color=COLOURS[name], label=name)
        places = [getattr(r.case, axis) for r in group]
        if all(r.roofline for r in group):
            roof = [1e3 * r.roofline for r in group]
            panel.loglog(places, roof, "k:", label="roofline")
        sizes = ", ".join(v if k == "where" else f"{k} {v}" for k, v in fixed)
        panel.set_title(f"{cell} {mode}, {sizes}", fontsize=9)
        panel.set_xlabel(axis)
        panel.set_ylabel("ms")
        panel.grid(alpha=0.3)
    # One legend: a panel has only the implementations that take its cases.
    lines = {line.get_label(): line for panel in panels.flat for line in panel.get_lines()}
    names = [name for name in (*PEERS, OURS, "roofline") if name in lines]
    figure.legend(
        [lines[name] for name in names], names, loc="outside upper center", ncols=len(names)
    )
    return figure


def plot_heat(plt, records: list[Record]):
    """Speed-up over torch.nn: a panel per cell, B down, H across, at the T with most cases."""
    chosen = [r for r in records if plain(r) and r.case.mode == "train"]
    if not chosen:
        return None
    kinds = [(r.case.T, r.case.where) for r in chosen]
    T, where = max(set(kinds), key=kinds.count)
    chosen = [r for r in chosen if (r.case.T, r.case.where) == (T, where)]
    cells = [cell for cell in LAYERS if any(r.case.cell == cell for r in chosen)]
    figure, panels = plt.subplots(1, len(cells), figsize=(4.2 * len(cells), 3.6), squeeze=False)
    for panel, cell in zip(panels[0], cells, strict=True):
        found = {
            (r.case.B, r.case.H): r.speedup()[1] for r in chosen if r.case.cell == cell
        }  # fmt: skip
        rows = sorted({b for b, _ in found})
        columns = sorted({h for _, h in found})
        grid = [[found.get((b, h), float("nan")) for h in columns] for b in rows]
        panel.imshow(grid, cmap="RdYlGn", vmin=0, vmax=4, aspect="auto")
        for (b, h), value in found.items():
            place = (columns.index(h), rows.index(b))
            panel.annotate(f"{value:.2f}", place, ha="center", va="center", fontsize=9)
        panel.set_xticks(range(len(columns)), columns)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_xlabel("H")
        panel.set_ylabel("B")
        panel.set_title(f"{cell} training, T {T}, {where}: speed-up", fontsize=9)
    return figure


def plot_roofline(plt, records: list[Record]):
    """Arithmetic done per second against flops per byte of recurrent weights, under the roof."""
    chosen = [r for r in records if plain(r) and r.rates]
    if not chosen:
        return None
    figure, panel = plt.subplots(figsize=(7, 4.5))
    product = max(r.rates["product"] for r in chosen)
    for size in sorted({share(r.case) for r in chosen}):
        same = next(r for r in chosen if share(r.case) == size)
        slope = same.rates["read"] * same.case.threads
        bend = product / slope
        panel.loglog(
            [0.05, bend, 128], [0.05 * slope / 1e9, product / 1e9, product / 1e9], "k-", lw=0.5
        )
    for name in ("torch.nn", OURS):
        for cell in LAYERS:
            points = [
                (2 * r.case.B / itemsize(r.case), flops(r.case) / r.median(name) / 1e9)
                for r in chosen
                if r.case.cell == cell
            ]
            if points:
                panel.loglog(
                    *zip(*points, strict=True),
                    MARKERS[cell],
                    color=COLOURS[name],
                    alpha=0.6,
                    label=f"{name} {cell}",
                )
    panel.set_xlabel("flops per byte of recurrent weights")
    panel.set_ylabel("GF/s")
    panel.set_title(f"Roofline, {SHORT['float32']}", fontsize=10)
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    return figure


PLOTS: dict[str, Callable] = {
    "time_against_T.png": lambda plt, records: plot_lines(plt, records, "T"),
    "time_against_H.png": lambda plt, records: plot_lines(plt, records, "H"),
    "speedup.png": plot_heat,
    "roofline.png": plot_roofline,
}


def draw(records: list[Record], folder: Path) -> list[str]:
    """Write the plots for which there are enough cases; their file names."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("a report needs matplotlib: it comes with the extra `bench`") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []
    for name, plot in PLOTS.items():
        figure = plot(plt, records)
        if figure is not None:
            figure.set_layout_engine("constrained")
            figure.savefig(folder / name, dpi=120)
            plt.close(figure)
            written.append(name)
    return written
