"""Four ways to improve a next-word predictor, each a switch whose effect is printed.

More data (the whole text instead of a fifth), deeper (two layers instead of one), regularised (dropout and
decaying weights), bidirectional. The last is legal only where the word to guess stays hidden: that model
fills gaps from both sides instead of continuing. Without a switch each is tried alone; with some, those
together. Then the best model continues a beginning, at several temperatures and with few or many words to
draw from; `--interactive` asks for beginnings until an empty line.
"""

import math
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from . import program, text
from .model import NextWord, continuation, perplexity, prompt_numbers

WORDS, SIZE, BATCH, LENGTH = 1000, 64, 16, 32
SWITCHES = ("more-data", "deeper", "regularised", "bidirectional")


class Predictor(NextWord):
    """With dropout before and after the recurrent layers."""

    def __init__(self, layers, depth: int, drop: float):
        super().__init__(layers, "LSTM", WORDS, SIZE, depth, 0.0)
        self.drop = drop

    def forward(self, numbers: Tensor, state=None):
        x = dropout(self.embedding(numbers), self.drop, self.training)
        output, state = self.layers(x, state)
        return self.head(dropout(output, self.drop, self.training)), state


class GapFiller(Predictor):
    """Guesses each word from those before it and those after it, which a predictor has not got."""

    def __init__(self, layers, depth: int, drop: float):
        super().__init__(layers, depth, drop)
        self.layers = layers.LSTM(SIZE, SIZE, num_layers=1, bidirectional=True)
        self.head = nn.Linear(2 * SIZE, WORDS)
        if depth > 1:
            raise ValueError("a deeper bidirectional layer would see the word that it has to guess")

    def forward(self, numbers: Tensor, state=None):
        """numbers [T, B] -> logits [T - 2, B, words] of all but the outer words."""
        x = dropout(self.embedding(numbers), self.drop, self.training)
        forwards, backwards = self.layers(x)[0].chunk(2, 2)
        around = torch.cat([forwards[:-2], backwards[2:]], 2)
        return self.head(dropout(around, self.drop, self.training)), None


def gap_perplexity(model: GapFiller, numbers: Tensor) -> float:
    rows = numbers[: len(numbers) // BATCH * BATCH].view(BATCH, -1).T
    with torch.no_grad():
        logits, _ = model.eval()(rows)
    return math.exp(cross_entropy(logits.flatten(0, 1), rows[1:-1].flatten()).item())


def improve(
    switches: set[str], words: text.Text, options
) -> tuple[Predictor, float, program.Training]:
    """A model with these switches, its perplexity on unseen text and its training."""
    torch.manual_seed(options.seed)
    gaps, drop = "bidirectional" in switches, 0.3 * ("regularised" in switches)
    model = (GapFiller if gaps else Predictor)(options.layers, 1 + ("deeper" in switches), drop)
    train = words.train if "more-data" in switches else words.train[: len(words.train) // 5]
    part = text.Text(words.vocabulary, train, words.valid)

    def loss_of(step: int) -> tuple[Tensor, int]:
        inputs, targets = part.batch(step, LENGTH, BATCH, options.seed)
        logits, _ = model(inputs)
        targets = inputs[1:-1] if gaps else targets
        return cross_entropy(logits.flatten(0, 1), targets.flatten()), targets.numel()

    decay = 0.1 if "regularised" in switches else 0.0
    label = ", ".join(sorted(switches)) or "plain"
    training = program.train(loss_of, model.parameters(), options.steps, 1e-2, label, decay=decay)
    value = gap_perplexity(model, words.valid) if gaps else perplexity(model, words.valid)
    return model, value, training


def commonest_words(words: text.Text) -> float:
    """Perplexity of the words' frequencies alone: the baseline."""
    counts = words.train.bincount(minlength=WORDS) + 1.0
    chances = (counts / counts.sum()).log()
    return math.exp(-chances[words.valid].mean().item())


def show(model: Predictor, words: text.Text, prompt: str, options) -> None:
    for temperature, top_k in options.sampling:
        drawn = continuation(model, words, prompt, temperature, top_k, options.seed)
        line = text.readable(list(islice(drawn, 16)))
        print(f"  temperature {temperature}, top {top_k:>4}: {prompt} ... {line}")


def converse(model: Predictor, words: text.Text, options) -> None:
    """Continues what is typed, until an empty line."""
    while prompt := input("how does it begin? ").strip():
        try:
            prompt_numbers(words, prompt)
        except ValueError as error:
            print(error)
        else:
            show(model, words, prompt, options)


def main(arguments: list[str] | None = None) -> int:
    options_parser = program.parser("improve_next_word", __doc__, 250, 150)
    add = options_parser.add_argument
    for switch in SWITCHES:
        add(f"--{switch}", dest="switches", action="append_const", const=switch, default=[])
    add("--temperature", type=float, help="default: several")
    add("--top-k", type=int, help="draw from the K likeliest words (default: several)")
    add("--interactive", action="store_true", help="ask for beginnings")
    options = program.start(options_parser, arguments)
    if {"deeper", "bidirectional"} <= set(options.switches):
        options_parser.error("--bidirectional and --deeper exclude each other: see the docstring")
    asked = options.temperature is not None or options.top_k is not None
    own = (options.temperature or 0.7, options.top_k or 20)
    options.sampling = [own] if asked else [(0.3, 20), (0.7, 20), (1.2, 20), (1.0, 1), (1.0, WORDS)]

    words = text.load(WORDS)
    chosen = [set(options.switches)] if options.switches else [{switch} for switch in SWITCHES]
    best, plain, training = improve(set(), words, options)
    least, found = plain, {}
    for switches in chosen:
        model, value, one = improve(switches, words, options)
        training += one
        name = " + ".join(sorted(switches))
        found[name] = value
        note = ", of gaps" if "bidirectional" in switches else ""
        print(f"{name:<28} perplexity {plain:.1f} -> {value:.1f}{note}")
        if value < least and not isinstance(model, GapFiller):
            best, least = model, value
    show(best, words, "the value of the", options)
    if options.interactive:
        converse(best, words, options)
    common = commonest_words(words)
    margins = [program.Margin("perplexity", plain, "frequencies alone", common, 20, lower=True)]
    if "more-data" in found:
        margins.append(
            program.Margin("with more data", found["more-data"], "plain", plain, 20, lower=True)
        )
    return program.close(options, training, "words", *margins)


if __name__ == "__main__":
    program.run(main)
