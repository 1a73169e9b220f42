"""Interleaved timings: peers take turns, so that a busy moment of the machine hits all of them."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping

SHORTEST = 0.004  # seconds a single timing lasts at least; shorter calls are repeated inside it


def seconds_of(function: Callable, repeat: int = 1, now=time.perf_counter) -> float:
    """Seconds per call, over `repeat` calls."""
    start = now()
    for _ in range(repeat):
        function()
    return (now() - start) / repeat


def repetitions(function: Callable, shortest: float = SHORTEST, now=time.perf_counter) -> int:
    """How many calls make one timing of at least `shortest` seconds."""
    repeat = 1
    while True:
        total = seconds_of(function, repeat, now) * repeat
        if total >= shortest:
            return repeat
        growth = 1.2 * shortest / total if total > 0 else 10
        repeat = math.ceil(repeat * min(max(growth, 1.5), 10))


def interleave(
    functions: Mapping[str, Callable],
    budget: float = 2.0,
    fewest: int = 5,
    most: int = 60,
    shortest: float = SHORTEST,
    now=time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each function: round after round, in turn, for about `budget` seconds.

    Entry i of every list comes from round i, so ratios can be taken pair by pair.
    """
    for function in functions.values():  # first calls pay for set-up
        function()
    repeat = {name: repetitions(function, shortest, now) for name, function in functions.items()}
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start, done = now(), 0
        while done < fewest or (done < most and now() - start < budget):
            for name, function in functions.items():
                rounds[name].append(seconds_of(function, repeat[name], now))
            done += 1
    finally:
        if collecting:
            gc.enable()
    return rounds


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def speedups(peer: list[float], ours: list[float]) -> list[float]:
    """How many times faster `ours` was than `peer`, round by round."""
    return [p / o for p, o in zip(peer, ours, strict=True)]


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))
