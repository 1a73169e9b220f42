"""Times the cases of a grid."""

import sys
from pathlib import Path

import torch

from . import memory, roofline
from .cases import Case
from .check import disagreements
from .device import clock
from .environment import differences, environment
from .peers import OURS, available, make_run, takes
from .progress import Progress
from .results import Record, Results
from .table import HEADER, line, summary
from .timing import interleave


class WrongResult(Exception):
    """An implementation computes something else than torch.nn does."""


def time_case(case: Case, peers: list[str], budget: float, with_memory: bool = False) -> Record:
    """Check that all agree, then take turns. `budget` is seconds of timing."""
    torch.set_num_threads(case.threads)
    names = [peer for peer in peers if takes(peer, case)] + [OURS]
    runs = {name: make_run(name, case) for name in names}
    wrong = disagreements(case, runs)
    if wrong:
        text = "; ".join(f"{name}: {what}" for name, what in wrong.items())
        raise WrongResult(f"{case.name}: {text}")
    if case.device != "cpu":  # rates and memory are measured on CPUs alone
        return Record(case, interleave(runs, budget, now=clock(case)), None, None)
    rates = roofline.measure(case)
    held = None
    if with_memory and case.mode == "train":
        held = {name: memory.measure(name, case) for name in ("torch.nn", OURS)}
    return Record(
        case,
        interleave(runs, budget),
        roofline.seconds(case, rates),
        {"product": rates.product, "read": rates.read},
        held if held and all(held.values()) else None,
    )


def resumed(path: Path, here: dict) -> Results:
    results = Results.load(path)
    differ = differences(results.environment, here)
    if differ:
        raise SystemExit(
            f"cannot continue {path}: it was made elsewhere ({'; '.join(differ)}). "
            "Run without --resume, or with another --output."
        )
    return results


def rates_text(records) -> list[str]:
    """The measured rates that the rooflines stand on."""
    records = [r for r in records if r.rates]
    if not records:
        return []
    products = {(r.case.dtype, r.case.threads): r.rates["product"] for r in records}
    reads = {roofline.share(r.case): r.rates["read"] for r in records}
    return [
        *(
            f"2048^3 product, {dtype}, {threads} threads: {rate / 1e9:.0f} GF/s"
            for (dtype, threads), rate in sorted(products.items())
        ),
        "one core reads "
        + ", ".join(f"{size / 2**10:.4g} KiB at {reads[size] / 1e9:.0f}" for size in sorted(reads))
        + " GB/s",
    ]


def run(cases: list[Case], path: Path, budget: float, resume: bool, with_memory: bool) -> int:
    """Time the cases, print a table, write `path`. Exit status 1: wrong result or missed target."""
    here = environment(cases[0].device)
    results = resumed(path, here) if resume and path.exists() else Results(here)
    peers = available()
    if "onnxruntime" not in peers and cases[0].device == "cpu":
        print("ONNX Runtime is not installed (it and onnx come with the extra `bench`)")
    print(", ".join(f"{key} {value}" for key, value in here.items()))
    print(HEADER)
    bar = Progress(len(cases), "benchmarks")
    wrong = []
    for done, case in enumerate(cases):
        if case.name not in results.records:
            bar.update(done, case.name)
            try:
                results.records[case.name] = time_case(case, peers, budget, with_memory)
            except WrongResult as error:
                wrong.append(str(error))
                bar.clear()
                print(f"WRONG RESULT: {error}")
                continue
            results.save(path)
        bar.clear()
        print(line(results.records[case.name]))
        sys.stdout.flush()
    found = [results.records[case.name] for case in cases if case.name in results.records]
    if found:
        print(*rates_text(found), sep="\n")
        print(f"\n{'speed-up':<56}{'cases':>6}{'mean':>8}{'least':>8}")
        for name, count, mean, least in summary(found):
            print(f"{name:<56}{count:>6}{mean:>7.2f}x{least:>7.2f}x")
    missed = [record.case.name for record in found if record.missed]
    promised = sum(record.case.at_least is not None for record in found)
    if promised:
        print(f"\ntargets: {promised - len(missed)} of {promised} reached")
    print(f"written to {path}")
    return 1 if wrong or missed else 0
