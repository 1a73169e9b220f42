"""Four ways to improve a next-word predictor, each a switch whose effect is printed.

More data (the whole text instead of a fifth), regularised (dropout and decaying weights), deeper (two
layers instead of one), bidirectional. The last is legal only where the word to guess stays hidden: that
model fills gaps from both sides instead of continuing. Without a switch each is tried alone, and depth
once more with the data that it needs; with switches, those together. Then the best model continues a
beginning, at several temperatures and with few or many words to draw from; `--interactive` asks for
beginnings until an empty line.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from . import program, text
from .converse import converse, show
from .model import frequency_perplexity, perplexity

WORDS, SIZE, BATCH, LENGTH = 1000, 64, 16, 32
SWITCHES = ("more-data", "regularised", "deeper", "bidirectional")
TRIED = (*({switch} for switch in SWITCHES), {"more-data", "deeper"})


class Predictor(nn.Module):
    """Embedding, LSTMs, softmax. Each LSTM adds to what it read: connections that skip it."""

    def __init__(self, layers, depth: int, drop: float):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, SIZE)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstms = nn.ModuleList(layers.LSTM(SIZE, SIZE) for _ in range(depth))
        self.head = nn.Linear(SIZE, WORDS)
        self.drop = drop

    def forward(self, numbers: Tensor, states=None):
        """numbers [T, B] -> logits [T, B, words] and the states to go on from."""
        x, after = dropout(self.embedding(numbers), self.drop, self.training), []
        for k, lstm in enumerate(self.lstms):
            output, state = lstm(x, states and states[k])
            x = x + dropout(output, self.drop, self.training)
            after.append(state)
        return self.head(x), after


class GapFiller(nn.Module):
    """Guesses each word from those before it and those after it, which a predictor has not got. One
    layer: a second one would see the word that it has to guess."""

    def __init__(self, layers, drop: float):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, SIZE)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.lstm = layers.LSTM(SIZE, SIZE, bidirectional=True)
        self.head = nn.Linear(2 * SIZE, WORDS)
        self.drop = drop

    def forward(self, numbers: Tensor) -> tuple[Tensor, None]:
        """numbers [T, B] -> logits [T - 2, B, words] of all but the outer words."""
        x = dropout(self.embedding(numbers), self.drop, self.training)
        forwards, backwards = self.lstm(x)[0].chunk(2, 2)
        around = torch.cat([forwards[:-2], backwards[2:]], 2)
        return self.head(dropout(around, self.drop, self.training)), None


def gap_perplexity(model: GapFiller, numbers: Tensor) -> float:
    rows = numbers[: len(numbers) // BATCH * BATCH].view(BATCH, -1).T
    with torch.no_grad():
        logits, _ = model.eval()(rows)
    return math.exp(cross_entropy(logits.flatten(0, 1), rows[1:-1].flatten()).item())


def improve(
    switches: set[str], words: text.Text, options
) -> tuple[nn.Module, float, program.Training]:
    """A model with these switches, its perplexity on unseen text and its training."""
    torch.manual_seed(options.seed)
    gaps, drop = "bidirectional" in switches, 0.3 * ("regularised" in switches)
    depth = 1 + ("deeper" in switches)
    model = GapFiller(options.layers, drop) if gaps else Predictor(options.layers, depth, drop)
    train = words.train if "more-data" in switches else words.train[: len(words.train) // 5]
    part = text.Text(words.vocabulary, train, words.valid)

    def loss_of(step: int) -> tuple[Tensor, int]:
        inputs, targets = part.batch(step, LENGTH, BATCH, options.seed)
        logits, _ = model(inputs)
        targets = inputs[1:-1] if gaps else targets
        return cross_entropy(logits.flatten(0, 1), targets.flatten()), targets.numel()

    decay = 0.1 if "regularised" in switches else 0.0
    training = program.train(
        loss_of, model.parameters(), options.steps, 1e-2, name_of(switches), decay=decay
    )
    value = gap_perplexity(model, words.valid) if gaps else perplexity(model, words.valid)
    return model, value, training


def name_of(switches: set[str]) -> str:
    return " + ".join(switch for switch in SWITCHES if switch in switches) or "plain"


def draw(found: dict[str, float], common: float, options) -> None:
    figure = program.new_figure(8, 3.2)
    axes = figure.add_subplot(
        xlabel="perplexity of unseen text (less is better)", title="Improving a next-word predictor"
    )
    names = [name + " (of gaps)" * ("bidirectional" in name) for name in found]
    bars = axes.barh(names, list(found.values()))
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.axvline(common, color="black", linestyle="--", linewidth=1, label="frequencies alone")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    figure.legend(loc="outside lower right", fontsize=9)
    program.save(figure, options)


def main(arguments: list[str] | None = None) -> int:
    options_parser = program.parser("improve_next_word", __doc__, 240, 200)
    add = options_parser.add_argument
    for switch in SWITCHES:
        add(f"--{switch}", dest="switches", action="append_const", const=switch, default=[])
    add("--temperature", type=program.number(float, 0), help="default: several")
    add("--top-k", type=program.number(int, 0), help="draw from the K likeliest (default: several)")
    add("--interactive", action="store_true", help="ask for beginnings")
    options = program.start(options_parser, arguments)
    if {"deeper", "bidirectional"} <= set(options.switches):
        options_parser.error("--bidirectional and --deeper exclude each other: see the docstring")
    asked = options.temperature is not None or options.top_k is not None
    own = (options.temperature or 0.7, options.top_k or 20)
    sampling = [own] if asked else [(0.3, 20), (0.7, 20), (1.2, 20), (1.0, 1), (1.0, WORDS)]

    words = text.load(WORDS)
    best, plain, training = improve(set(), words, options)
    least, found = plain, {"plain": plain}
    for switches in [set(options.switches)] if options.switches else TRIED:
        model, value, one = improve(switches, words, options)
        training += one
        name = name_of(switches)
        found[name] = value
        note = ", of gaps: another task" if "bidirectional" in switches else ""
        print(f"{name:<28} perplexity {plain:.1f} -> {value:.1f}{note}")
        if value < least and not isinstance(model, GapFiller):
            best, least = model, value
    show(best, words, "the value of the", sampling, options.seed)
    if options.interactive:
        converse(best, words, sampling, options.seed)
    common = frequency_perplexity(words)
    draw(found, common, options)
    margins = [program.Margin("plain", plain, "frequencies alone", common, 20, lower=True)]
    for name, by in (("more-data", 40), ("regularised", 10), ("bidirectional", 20)):
        if name in found:
            margins.append(program.Margin(name, found[name], "plain", plain, by, lower=True))
    if not options.switches:
        deeper = found["more-data + deeper"]
        margins.append(
            program.Margin("more-data + deeper", deeper, "more-data", found["more-data"], 0, True)
        )
    return program.close(options, training, "words", *margins)


if __name__ == "__main__":
    program.run(main)
