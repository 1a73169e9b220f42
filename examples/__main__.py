"""Runs every example with its check, one after the other: `python -m examples --budget small`.

Ends with a table and status 1 if one failed. The next-word example, which compares both implementations
itself, comes with its own options (`make run`) and is not among them.
"""

import argparse
import importlib
import time
from pathlib import Path

from . import program

NAMES = (
    "sentiment",
    "vowels",
    "tagging",
    "dates",
    "captions",
    "digit_rows",
    "forecast",
    "improve_next_word",
    "deep_bidirectional",
    "lstm_or_gru",
    "transfer",
    "siamese",
    "vanishing_gradients",
)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m examples", description=__doc__)
    add = options.add_argument
    add("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    add("--impl", choices=program.NAMESPACES, default="seqkern")
    add("--budget", choices=("full", "small"), default="full")
    add("--steps", help="of each training")
    add("--seed", default="0")
    add("--figures", type=Path, default=Path(".cache/figures"), metavar="FOLDER")
    given = options.parse_args(arguments)
    unknown = set(given.names) - set(NAMES)
    if unknown:
        options.error(f"no such example: {', '.join(sorted(unknown))}")
    passed = ["--impl", given.impl, "--budget", given.budget, "--seed", given.seed, "--check"]
    passed += ["--figures", str(given.figures)]
    passed += ["--steps", given.steps] if given.steps else []
    results = []
    for name in given.names or NAMES:
        print(f"\n== {name}", flush=True)
        begun = time.monotonic()
        status = importlib.import_module(f"examples.{name}").main(passed)
        results.append((name, status, time.monotonic() - begun))
    print()
    for name, status, seconds in results:
        print(f"  [{'FAIL' if status else 'pass'}] {name:<22} {seconds:>6.1f} s")
    total = sum(seconds for _, _, seconds in results)
    failed = sum(status != 0 for _, status, _ in results)
    print(f"{len(results) - failed} examples passed, {failed} failed, {total:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    program.run(main)
