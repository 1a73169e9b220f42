"""Continues beginnings of sentences, given or typed."""

from collections.abc import Iterable
from itertools import islice

from torch import nn

from .model import continuation, prompt_numbers
from .text import Text, readable


def show(
    model: nn.Module, words: Text, prompt: str, sampling: Iterable[tuple[float, int]], seed: int
) -> None:
    """A line for each temperature and number of words to draw from."""
    for temperature, top_k in sampling:
        line = readable(
            list(islice(continuation(model, words, prompt, temperature, top_k, seed), 16))
        )
        print(f"  temperature {temperature}, top {top_k:>4}: {prompt} ... {line}")


def converse(
    model: nn.Module, words: Text, sampling: Iterable[tuple[float, int]], seed: int
) -> None:
    """Continues what is typed, until an empty line or the end of the input."""
    try:
        while prompt := input("how does it begin? ").strip():
            try:
                prompt_numbers(words, prompt)
            except ValueError as error:
                print(error)
            else:
                show(model, words, prompt, sampling, seed)
    except EOFError:
        print()
