"""The language reference that every Python carries, as numbers for a model to learn."""

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

UNKNOWN, PARAGRAPH = "<unk>", "<p>"
WORD = re.compile(r"[a-z_]+(?:'[a-z]+)?|[.,:;?!()]")


def paragraphs() -> list[list[str]]:
    """Words and punctuation of each paragraph of prose, each paragraph once, grammar left out."""
    from pydoc_data.topics import topics

    blocks = [block for _, text in sorted(topics.items()) for block in re.split(r"\n\s*\n", text)]
    unique = dict.fromkeys(" ".join(block.lower().split()) for block in blocks)
    found = [WORD.findall(block) for block in unique if "::=" not in block]
    return [words for words in found if len(words) > 5]


@dataclass
class Text:
    vocabulary: list[str]  # most frequent first, after the two special words
    train: Tensor  # [N] int64
    valid: Tensor  # [M] int64: every tenth paragraph

    def __post_init__(self):
        self.index = {word: number for number, word in enumerate(self.vocabulary)}

    def encode(self, words: list[str]) -> list[int]:
        return [self.index.get(word, 0) for word in words]

    def batch(self, step: int, length: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and the words that follow them, [length, batch] each: a function of step, seed."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        starts = torch.randint(len(self.train) - length, (batch,), generator=generator)
        window = self.train[starts + torch.arange(length + 1)[:, None]]
        return window[:-1], window[1:]


def load(size: int) -> Text:
    """The text with a vocabulary of `size` words; rarer ones become <unk>."""
    found = paragraphs()
    counts = Counter(word for words in found for word in words)
    common = sorted(counts, key=lambda word: (-counts[word], word))
    text = Text([UNKNOWN, PARAGRAPH, *common[: size - 2]], torch.empty(0), torch.empty(0))

    def stream(chosen) -> Tensor:
        return torch.tensor([n for words in chosen for n in text.encode([*words, PARAGRAPH])])

    text.valid = stream(found[9::10])
    text.train = stream(words for place, words in enumerate(found) if place % 10 != 9)
    return text


def readable(words: list[str]) -> str:
    """Words as a line of prose: "f ( x ) , then <p>" becomes "f (x), then¶"."""
    line = re.sub(r" ([.,:;?!)])", r"\1", " ".join(words))
    return line.replace("( ", "(").replace(f" {PARAGRAPH}", "¶")
