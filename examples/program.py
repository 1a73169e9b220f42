"""What the programs of this folder share: options, the training loop, figures and the closing lines."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqkern
from benchmarks.progress import Progress

from .report import Checks

NAMESPACES = {"seqkern": seqkern, "torch": nn}


def number(kind, low, high=None):
    """An argparse type: a number greater than `low` and, if given, smaller than `high`."""

    def convert(value: str):
        try:
            converted = kind(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is not a number") from None
        if not converted > low or (high is not None and not converted < high):
            below = "" if high is None else f" and smaller than {high}"
            raise argparse.ArgumentTypeError(f"must be greater than {low}{below}, got {value}")
        return converted

    return convert


def parser(name: str, description: str, full: int, small: int) -> argparse.ArgumentParser:
    """The options of every example; full and small are the training steps of the two budgets."""
    options = argparse.ArgumentParser(
        prog=f"python -m examples.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.set_defaults(name=name, budgets={"full": full, "small": small})
    add = options.add_argument
    add("--impl", choices=NAMESPACES, default="seqkern", help="whose layers (default seqkern)")
    add("--budget", choices=("full", "small"), default="full", help="small: for a quick check")
    add("--steps", type=number(int, 0), help=f"training steps (full: {full}, small: {small})")
    add("--seed", type=number(int, -1, 2**31), default=0)
    add("--threads", type=number(int, 0), default=torch.get_num_threads())
    add("--check", action="store_true", help="status 1 unless the stated margins are reached")
    add("--figures", type=Path, default=Path(".cache/figures"), metavar="FOLDER")
    return options


def start(options_parser: argparse.ArgumentParser, arguments: list[str] | None):
    """The options, with the namespace of the layers (``options.layers``); seeds torch."""
    options = options_parser.parse_args(arguments)
    options.steps = options.steps or options.budgets[options.budget]
    try:  # before the training, not after it
        options.figures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        options_parser.error(f"--figures {options.figures}: {error.strerror}")
    options.layers = NAMESPACES[options.impl]
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    return options


def draw(count: int, batch: int, step: int, seed: int) -> Tensor:
    """Indices of `batch` of `count` items, a function of step and seed alone."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    return torch.randint(count, (batch,), generator=generator)


def final_states(layer: nn.Module, x: Tensor, lengths: Tensor):
    """The states after each sequence's own end, of a padded batch [T, B, I]: no padding is computed.

    seqkern's layers take the lengths; for torch.nn's the batch is packed.
    """
    if isinstance(layer, (seqkern.LSTM, seqkern.GRU, seqkern.RNN)):
        return layer(x, lengths=lengths)[1]
    return layer(pack_padded_sequence(x, lengths, enforce_sorted=False))[1]


@dataclass
class Training:
    """What was trained: each step's loss and seconds, and the items (words, samples, ...) seen."""

    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    items: int = 0

    @property
    def seconds(self) -> float:
        return sum(self.step_seconds)

    @property
    def milliseconds(self) -> float:
        """Of a step; the median, which other programs on the machine move less than the mean."""
        return 1e3 * median(self.step_seconds)

    def __add__(self, other: "Training") -> "Training":
        seconds = self.step_seconds + other.step_seconds
        return Training(self.losses + other.losses, seconds, self.items + other.items)


def train(
    loss_of: Callable[[int], tuple[Tensor, int]],
    parameters: Iterable[nn.Parameter],
    steps: int,
    rate: float,
    label: str = "training",
    clip: float = 1.0,
    decay: float = 0.0,
    watch: Callable[[int, float], None] | None = None,
) -> Training:
    """AdamW with one cycle of the rate and clipped gradients; loss_of(step) gives loss and items.

    watch(steps done, seconds) is called after each step; its own time is not counted.
    """
    parameters = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    bar, training = Progress(steps, label), Training()
    for step in range(steps):
        begun = time.perf_counter()
        loss, items = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        schedule.step()
        training.losses.append(loss.item())
        training.items += items
        training.step_seconds.append(time.perf_counter() - begun)
        if watch:
            watch(step + 1, training.seconds)
        bar.update(step + 1, f"loss {training.losses[-1]:.4f}")
    bar.clear()
    return training


@dataclass(frozen=True)
class Margin:
    """A quality, the baseline it is held against and by how much it must be better."""

    what: str
    reached: float
    baseline: str
    beside: float
    by: float
    lower: bool = False  # whether less is better

    @property
    def good(self) -> bool:
        gain = self.beside - self.reached if self.lower else self.reached - self.beside
        return gain >= self.by

    def __str__(self) -> str:
        word = "below" if self.lower else "above"
        return (
            f"{self.what} {self.reached:.3f}, {self.baseline} {self.beside:.3f} "
            f"(asked: {self.by:.3g} {word} it)"
        )


def close(options, training: Training, unit: str, *margins: Margin) -> int:
    """Prints each quality beside its baseline and the closing line; the exit status."""
    checks = Checks()
    for margin in margins:
        if options.check:
            checks.add(margin.good, str(margin))
        else:
            print(f"  {margin}")
    rate = training.items / training.seconds
    print(
        f"{options.name}: {margins[0].what} {margins[0].reached:.3f}, {rate:,.0f} {unit}/s in training "
        f"({options.impl}, {len(training.losses)} steps, {training.seconds:.0f} s)"
    )
    return checks.exit_status if options.check else 0


def new_figure(width: float = 8.0, height: float = 4.5):
    """A figure of matplotlib that needs no display."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("this example needs matplotlib: pip install 'seqkern[examples]'") from None
    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def save(figure, options, name: str | None = None) -> None:
    path = options.figures / f"{name or options.name}.png"
    figure.savefig(path)
    print(f"figure: {path}")


def run(main: Callable[[], int]) -> None:
    """Ends the process with main's status; Ctrl-C ends it without a traceback."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(130)
