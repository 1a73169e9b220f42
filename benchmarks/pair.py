"""Two processes at once, each with the threads of the case: what they get done together.

Threads that spin while they wait take the time of those that work: here it would show.
"""

import multiprocessing
import time

import torch

from .cases import Case
from .peers import OURS, make_run
from .timing import geometric_mean, quartiles, speedups

PROCESSES, ROUNDS = 2, 3


def _child(name: str, values: dict, seconds: float, start, pipe) -> None:
    try:
        case = Case.from_dict(values)
        torch.set_num_threads(case.threads)
        run = make_run(name, case)
        run()
        start.wait()
        begin, calls = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begin) < seconds:
            run()
            calls += 1
        pipe.send(calls / elapsed)
    except BaseException:
        start.abort()
        raise


def calls_per_second(name: str, case: Case, seconds: float) -> float:
    """Of all processes together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    start = context.Barrier(PROCESSES)
    pipes = []
    for _ in range(PROCESSES):
        receive, send = context.Pipe(duplex=False)
        context.Process(target=_child, args=(name, case.as_dict(), seconds, start, send)).start()
        send.close()
        pipes.append(receive)
    try:
        return sum(pipe.recv() for pipe in pipes)
    except EOFError:
        raise RuntimeError(f"{name}, {case.name}: a process ended without an answer") from None


def pair(cases: list[Case], seconds: float) -> int:
    """Prints the throughput of the pair over that of torch.nn's pair for each case."""
    print(f"{PROCESSES} processes at once{'':<23}{'torch.nn':>12}{OURS:>12}  ratio [quartiles]")
    middles = []
    for case in cases:
        rounds = [
            [calls_per_second(name, case, seconds) for name in ("torch.nn", OURS)]
            for _ in range(ROUNDS)
        ]
        theirs, ours = zip(*rounds, strict=True)
        low, middle, high = quartiles(speedups(ours, theirs))
        rates = [quartiles(list(rates))[1] for rates in (theirs, ours)]
        middles.append(middle)
        text = f"{case.name:<44}{rates[0]:>10.1f}/s{rates[1]:>10.1f}/s"
        print(f"{text}  {middle:.2f}x [{low:.2f} {high:.2f}]", flush=True)
    print(f"geometric mean {geometric_mean(middles):.2f}x, least {min(middles):.2f}x")
    return 0
