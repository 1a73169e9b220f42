"""python -m benchmarks [run | list | report | compare | pair]; without a command: run."""

import argparse
import re
import sys
from pathlib import Path

from .cases import DEVICES, GRIDS, grid

DEFAULT_GRID = "standard"
RESULTS = Path(__file__).resolve().parent / "results"


def positive(kind):
    def convert(text: str):
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"
    return convert


def pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True)

    def grid_options(command, default=DEFAULT_GRID):
        command.add_argument("--grid", choices=GRIDS, default=default)
        command.add_argument(
            "--threads", nargs="+", type=positive(int), default=[2], help="on the CPU; default: 2"
        )
        command.add_argument(
            "--device", choices=DEVICES, default="cpu", help="default: cpu; cuda: against cuDNN"
        )
        command.add_argument(
            "--only", type=pattern, metavar="REGEX", help="cases whose name matches"
        )

    run = commands.add_parser("run", help="time a grid of cases (the default command)")
    grid_options(run)
    run.add_argument(
        "--seconds", type=positive(float), default=2.0, help="of timing for each case; default: 2"
    )
    run.add_argument(
        "--output", type=Path, help="default: benchmarks/results/GRID.json or GRID-cuda.json"
    )
    run.add_argument("--resume", action="store_true", help="keep what the output file has")
    run.add_argument("--no-memory", action="store_true", help="leave out memory of training steps")

    grid_options(commands.add_parser("list", help="name the cases of a grid"))

    pair = commands.add_parser("pair", help="two processes at once, against torch.nn's two")
    grid_options(pair, default="quick")
    pair.add_argument(
        "--seconds", type=positive(float), default=2.0, help="of each of three rounds; default: 2"
    )

    report = commands.add_parser("report", help="a Markdown table and PNG plots of results")
    report.add_argument("results", type=Path, nargs="+", metavar="JSON")
    report.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER")

    compare = commands.add_parser("compare", help="what got faster and slower from A to B")
    compare.add_argument("a", type=Path, metavar="A.json")
    compare.add_argument("b", type=Path, metavar="B.json")
    return main


def main(arguments: list[str]) -> int:
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["run", *arguments]
    options = parser().parse_args(arguments)
    if options.command in ("run", "list", "pair"):
        cases = grid(options.grid, options.threads, options.device)
        if options.only:
            cases = [case for case in cases if options.only.search(case.name)]
        if not cases:
            raise SystemExit(f"no case of grid {options.grid} matches {options.only.pattern!r}")
    if options.command == "list":
        print(*(case.name for case in cases), sep="\n")
        return 0
    if options.command == "compare":
        from .compare import compare

        return compare(options.a, options.b)
    if options.command == "report":
        from .report import report

        return report(options.results, options.output)
    from .device import require
    from .pair import pair
    from .run import run

    require(options.device)
    if options.command == "pair":
        return pair(cases, options.seconds)
    suffix = "" if options.device == "cpu" else f"-{options.device}"
    output = options.output or RESULTS / f"{options.grid}{suffix}.json"
    try:
        return run(cases, output, options.seconds, options.resume, not options.no_memory)
    except KeyboardInterrupt:
        print(f"\ninterrupted; go on with --resume (finished cases are in {output})")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
