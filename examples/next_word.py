"""Trains a next-word predictor on Python's language reference, with torch.nn and with seqkern.

Both start from the same weights and see the same batches in turns, once with LSTM layers and once
with GRU layers. The program prints both loss curves, words per second and the time spent in the
recurrent layers, lets each model continue a prompt, and ends with a table of times over sequence
lengths. It checks that both learn the same and exits with status 1 if they do not. With --impl one
of the two is trained alone.
"""

import argparse
import hashlib
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median

import torch

import seqkern
from benchmarks.progress import Progress, clock

from . import checkpoint, text
from .converse import converse
from .model import (
    NextWord,
    Trainer,
    continuation,
    frequency_perplexity,
    perplexity,
    prompt_numbers,
)
from .program import number
from .report import Checks, loss_curves, speed, times_over_lengths
from .stop import stop_request

NAMESPACES = {"torch.nn": torch.nn, "seqkern": seqkern}
IMPLS = {"both": tuple(NAMESPACES), "seqkern": ("seqkern",), "torch": ("torch.nn",)}
CELLS = ("LSTM", "GRU")
SAVE_EVERY = 100  # steps
BUDGETS = {  # steps, lengths of the table, seconds of timing for each of its entries
    "full": (350, (1, 4, 16, 64, 256, 1024), 0.5),
    "small": (60, (1, 16, 128), 0.05),
}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m examples.next_word",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--impl", choices=IMPLS, default="both", help="whose layers (default: both, compared)")
    add("--budget", choices=BUDGETS, default="full", help="small: well under a minute")
    add("--steps", type=number(int, 0), help="training steps (full: 350, small: 60)")
    add("--minutes", type=number(float, 0), default=2.0, help="training ends here (default 2)")
    add("--cells", nargs="+", choices=CELLS, default=CELLS, help="default: both")
    add("--threads", type=number(int, 0), default=torch.get_num_threads())

    group = options.add_argument_group("model and training")
    add = group.add_argument
    add("--words", type=number(int, 100), default=2000, help="vocabulary (default 2000)")
    add("--size", type=number(int, 0), default=128, help="embedding, hidden (default 128)")
    add("--layers", type=number(int, 0), default=2, help="recurrent layers (default 2)")
    add("--dropout", type=number(float, -1e-9, 1), default=0.1, help="between them (default 0.1)")
    add("--batch", type=number(int, 0), default=16, help="sequences (default 16)")
    add("--length", type=number(int, 0, 5000), default=32, help="words of each (default 32)")
    add("--rate", type=number(float, 0), default=5e-3, help="Adam's step size (default 0.005)")
    add("--seed", type=number(int, -1), default=0)

    group = options.add_argument_group("checkpoint")
    add = group.add_argument
    add("--checkpoint", type=Path, default=Path(".cache/next_word.pt"), metavar="FILE")
    add("--resume", action="store_true", help="go on from the checkpoint")

    group = options.add_argument_group("continuation of a prompt")
    add = group.add_argument
    add("--prompt", default="the value of the expression")
    add("--continue-words", type=number(int, -1), default=30, metavar="N", help="default 30")
    add("--temperature", type=number(float, 0), default=0.7, help="default 0.7")
    add("--top-k", type=number(int, 0), default=20, help="draw from the K likeliest (default 20)")
    add("--interactive", action="store_true", help="then ask for more beginnings")
    return options


def setting_of(options, vocabulary: list[str]) -> dict:
    """What must not change between saving and resuming."""
    names = ("words", "size", "layers", "dropout", "batch", "length", "rate", "seed")
    digest = hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()[:16]
    return {**{name: getattr(options, name) for name in names}, "vocabulary": digest}


def make_model(name: str, cell: str, options) -> NextWord:
    """A fresh model; the same seed gives both implementations the same weights."""
    torch.manual_seed(options.seed)
    return NextWord(
        NAMESPACES[name], cell, options.words, options.size, options.layers, options.dropout
    )


def make_trainers(cell: str, options, saved: dict) -> dict[str, Trainer]:
    names = IMPLS[options.impl]
    trainers = {n: Trainer(make_model(n, cell, options), options.rate) for n in names}
    if cell in saved:
        if absent := trainers.keys() - saved[cell].keys():
            raise checkpoint.CheckpointError(
                f"{options.checkpoint} holds no {cell} model of {', '.join(absent)}: it was made "
                "with another --impl"
            )
        try:
            for name, trainer in trainers.items():
                trainer.load_state(saved[cell][name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.CheckpointError(
                f"{options.checkpoint} does not fit the {cell} model: {error}"
            ) from None
    return trainers


def train(cell: str, trainers: dict[str, Trainer], words, options, seconds: float, save) -> bool:
    """Train the models in turns on the same batches. False: the user asked to stop."""
    done = len(next(iter(trainers.values())).losses)
    bar = Progress(options.steps, f"{cell} training")
    end = time.monotonic() + seconds
    with stop_request() as stop:
        while done < options.steps and not stop.is_set():
            if time.monotonic() > end and done >= 50:
                bar.clear()
                print(f"{cell}: stopped by --minutes after {done} of {options.steps} steps")
                break
            batch = words.batch(done, options.length, options.batch, options.seed)
            seed = 1_000_003 * options.seed + done
            losses = [t.step(*batch, seed) for t in trainers.values()]
            done += 1
            bar.update(done, "loss " + " / ".join(f"{loss:.4f}" for loss in losses))
            if done % SAVE_EVERY == 0:
                save()
        save()
    bar.clear()
    return not stop.is_set()


def check_pair(cell: str, trainers: dict[str, Trainer], words, options, checks: Checks) -> None:
    """Same losses, same perplexity, and the checkpoint's weights work in torch.nn."""
    theirs, ours = trainers["torch.nn"], trainers["seqkern"]
    print(f"\n{cell}, {len(ours.losses)} steps of {options.batch} x {options.length} words\n")
    print(loss_curves(theirs.losses, ours.losses))
    first = min(50, len(ours.losses))
    pairs = zip(theirs.losses[:first], ours.losses[:first], strict=True)
    worst = max(abs(a - b) / abs(a) for a, b in pairs)
    checks.add(worst <= 1e-3, f"{cell}: first {first} losses within 1e-3 (largest {worst:.1e})")

    a, b = (perplexity(t.model, words.valid) for t in (theirs, ours))
    checks.add(
        abs(b / a - 1) <= 0.02,
        f"{cell}: perplexity of unseen text within 2% (torch.nn {a:.2f}, seqkern {b:.2f})",
    )
    check_checkpoint(cell, "seqkern", b, words, options, checks)
    print()
    print(speed(trainers, options.batch * options.length))


def check_alone(cell: str, trainers: dict[str, Trainer], words, options, checks: Checks) -> None:
    """One implementation: what it reached beside a baseline, and its checkpoint in the other."""
    ((name, trainer),) = trainers.items()
    reached, common = perplexity(trainer.model, words.valid), frequency_perplexity(words)
    rate = options.batch * options.length / median(trainer.step_seconds)
    print(
        f"\n{cell}: perplexity of unseen text {reached:.2f}, frequencies alone {common:.2f}; "
        f"{rate:,.0f} words/s in training ({name}, {len(trainer.losses)} steps)"
    )
    check_checkpoint(cell, name, reached, words, options, checks)


def check_checkpoint(cell: str, name: str, reached: float, words, options, checks: Checks) -> None:
    """The weights that were saved work in the other implementation."""
    (other,) = NAMESPACES.keys() - {name}
    saved = checkpoint.load(options.checkpoint, setting_of(options, words.vocabulary))
    model = make_model(other, cell, options)
    model.load_state_dict(saved[cell][name]["model"])
    checks.add(
        abs(perplexity(model, words.valid) / reached - 1) <= 1e-3,
        f"{cell}: the checkpoint of {name}'s model gives {other}'s the same perplexity",
    )


def continue_prompt(cell: str, trainers: dict[str, Trainer], words, options) -> None:
    print(f"\n{cell} goes on from: {options.prompt}")
    for name, trainer in trainers.items():
        drawn = continuation(
            trainer.model, words, options.prompt, options.temperature, options.top_k, options.seed
        )
        found = list(islice(drawn, options.continue_words))
        print(f"  {name:<9} ... {text.readable(found)}")


def main(arguments: list[str] | None = None) -> int:
    options_parser = parser()
    options = options_parser.parse_args(arguments)
    steps, lengths, table_seconds = BUDGETS[options.budget]
    options.steps = options.steps or steps
    torch.set_num_threads(options.threads)
    begun = time.monotonic()
    words = text.load(options.words)
    options.words = len(words.vocabulary)
    setting = setting_of(options, words.vocabulary)
    try:
        prompt_numbers(words, options.prompt)
        runs = checkpoint.load(options.checkpoint, setting) if options.resume else {}
        pairs = {cell: make_trainers(cell, options, runs) for cell in options.cells}
    except (ValueError, checkpoint.CheckpointError) as error:
        options_parser.exit(2, f"{options_parser.prog}: error: {error}\n")
    print(
        f"{len(words.train)} words to learn from, {len(words.valid)} to test on, "
        f"{len(words.vocabulary)} different; torch {torch.__version__}, seqkern "
        f"{seqkern.__version__} ({seqkern.cpu_capability()}), {options.threads} threads"
    )

    def save() -> None:
        runs.update({c: {n: t.state() for n, t in pair.items()} for c, pair in pairs.items()})
        checkpoint.save(options.checkpoint, setting, runs)

    checks = Checks()
    for cell, trainers in pairs.items():
        if not train(cell, trainers, words, options, 60 * options.minutes / len(pairs), save):
            print(f"stopped; saved to {options.checkpoint}, go on with --resume")
            return 130
    for cell, trainers in pairs.items():
        check = check_pair if options.impl == "both" else check_alone
        check(cell, trainers, words, options, checks)
        continue_prompt(cell, trainers, words, options)
    if options.interactive:
        sampling = [(options.temperature, options.top_k)]
        for cell, trainers in pairs.items():
            print(f"\n{cell}; an empty line ends it")
            converse(trainers[IMPLS[options.impl][-1]].model, words, sampling, options.seed)
    if options.impl == "both":
        times_over_lengths(lengths, options.threads, table_seconds, checks)
    print(f"\n{checks.summary()}, {clock(time.monotonic() - begun)} minutes")
    return checks.exit_status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(130)
