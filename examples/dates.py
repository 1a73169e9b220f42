"""Many-to-many of other length: dates as people write them, translated into ISO 8601.

A GRU reads "the 3rd of March, 2026"; its last state is all that a second GRU knows to write "2026-03-03".
It learns with the right beginning given (teacher forcing) and then writes alone, one step at a time, from
what it wrote before. No date of the test was seen in training, in no form.
"""

import random
import re
from calendar import day_abbr, day_name, month_abbr, month_name
from datetime import date

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from seqkern.init import orthogonal_

from . import program

BATCH, SIZE = 128, 128
FIRST, LAST = date(1950, 1, 1).toordinal(), date(2050, 1, 1).toordinal()
IN = " " + "abcdefghijklmnopqrstuvwxyz0123456789.,/-'"
OUT = "0123456789-"
START = len(OUT)


def ordinal(n: int) -> str:
    return f"{n}{'th' if 10 < n < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


FORMS = (
    lambda d: d.isoformat(),
    lambda d: f"{d.day}/{d.month}/{d.year}",  # the day first, as most of the world has it
    lambda d: f"{d.day:02}.{d.month:02}.{d.year % 100:02}",
    lambda d: f"{d.day} {month_name[d.month]} {d.year}",
    lambda d: f"{month_name[d.month]} {d.day}, {d.year}",
    lambda d: f"{month_abbr[d.month]} {ordinal(d.day)} '{d.year % 100:02}",
    lambda d: f"{d.day:02}-{month_abbr[d.month]}-{d.year}",
    lambda d: f"the {ordinal(d.day)} of {month_name[d.month]}, {d.year}",
    lambda d: f"{day_name[d.weekday()]}, {d.day} {month_abbr[d.month]}. {d.year}",
    lambda d: f"{day_abbr[d.weekday()]} {month_name[d.month]} {d.day} {d.year}",
)


def written(ordinals: Tensor, generator: random.Random) -> tuple[list[str], list[str]]:
    """Dates as people write them, each in some form, and in ISO."""
    dates = [date.fromordinal(n) for n in ordinals.tolist()]
    return [generator.choice(FORMS)(d).lower() for d in dates], [d.isoformat() for d in dates]


def numbers(texts: list[str], alphabet: str) -> tuple[Tensor, Tensor]:
    """Character numbers [T, B] and lengths [B]."""
    rows = [torch.tensor([alphabet.index(c) for c in text]) for text in texts]
    return pad_sequence(rows), torch.tensor([len(row) for row in rows])


class Translator(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.read = nn.Embedding(len(IN), 32)
        self.encoder = orthogonal_(layers.GRU(32, SIZE))
        self.written = nn.Embedding(len(OUT) + 1, 32)
        self.decoder = orthogonal_(layers.GRU(32 + SIZE, SIZE))
        self.head = nn.Linear(SIZE, len(OUT))

    def encode(self, texts: list[str]) -> Tensor:
        characters, lengths = numbers(texts, IN)
        return program.final_states(self.encoder, self.read(characters), lengths)

    def forward(self, texts: list[str], answers: Tensor) -> Tensor:
        """Logits [T, B, characters] of each next character, given the right ones before it."""
        first = torch.full_like(answers[:1], START)
        state = self.encode(texts)
        return self.write(torch.cat([first, answers[:-1]]), state, state)[0]

    def write(self, given: Tensor, read: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder on characters [T, B]; it is told again at every step what was read."""
        x = torch.cat([self.written(given), read.expand(len(given), -1, -1)], 2)
        output, state = self.decoder(x, state)
        return self.head(output), state

    @torch.no_grad()
    def translate(self, texts: list[str]) -> list[str]:
        """Greedy: the likeliest character goes in as the next step's input."""
        read, last, found = self.encode(texts), torch.full((1, len(texts)), START), []
        state = read
        for _ in range(len("2026-03-03")):
            logits, state = self.write(last, read, state)
            last = logits.argmax(-1)
            found.append(last)
        columns = torch.cat(found).T.tolist()
        return ["".join(OUT[n] for n in column) for column in columns]


def by_rule(text: str) -> str:
    """The baseline: the numbers in the text, the year in front; names of months are beyond it."""
    found = re.findall(r"\d+", text)
    if len(found[0]) < 4:
        found.reverse()
    return "-".join(number.zfill(2) for number in found)


def main(arguments: list[str] | None = None) -> int:
    options = program.start(program.parser("dates", __doc__, 300, 260), arguments)
    model = Translator(options.layers)
    days = FIRST + torch.randperm(LAST - FIRST, generator=torch.Generator().manual_seed(0))
    test, train = days[:1000], days[1000:]
    generator = random.Random(options.seed)

    def loss_of(step: int) -> tuple[Tensor, int]:
        chosen = train[program.draw(len(train), BATCH, step, options.seed)]
        texts, answers = written(chosen, generator)
        right, _ = numbers(answers, OUT)
        loss = cross_entropy(model(texts, right).flatten(0, 1), right.flatten())
        return loss, sum(map(len, texts)) + right.numel()

    training = program.train(loss_of, model.parameters(), options.steps, 8e-3)
    texts, answers = written(test, random.Random(0))
    found = model.translate(texts)
    for text, mine, right in list(zip(texts, found, answers, strict=True))[:10]:
        print(f"{text:>35} -> {mine}{'' if mine == right else f'   no: {right}'}")

    def exact(guesses: list[str]) -> float:
        return sum(a == b for a, b in zip(guesses, answers, strict=True)) / len(answers)

    margin = program.Margin(
        "exact translations",
        exact(found),
        "numbers by rule",
        exact([by_rule(t) for t in texts]),
        0.5,
    )
    return program.close(options, training, "characters", margin)


if __name__ == "__main__":
    program.run(main)
