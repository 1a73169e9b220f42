"""The standard library's own source, each character with the class of the token it belongs to."""

import functools
import io
import random
import sysconfig
import tokenize
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path

import torch
from torch import Tensor

TAGS = ("space", "name", "keyword", "number", "string", "comment", "operator")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
OTHER = len(CHARACTERS)  # the number of all other characters


def tags_of(text: str) -> Tensor:
    """The tag of each character of a program, [N]."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tags = torch.zeros(len(text), dtype=torch.long)
    string_start = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first, last = (starts[row - 1] + column for row, column in (token.start, token.end))
        kind = tokenize.tok_name[token.type]
        if kind.endswith("STRING_START"):  # an f-string of Python 3.12: a string up to its end
            string_start = first if string_start is None else string_start
        elif kind.endswith("STRING_END"):
            first, string_start, kind = string_start, None, "STRING"
        if string_start is not None:
            continue
        if kind == "NAME":
            tags[first:last] = TAGS.index("keyword" if iskeyword(token.string) else "name")
        elif kind in ("NUMBER", "STRING", "COMMENT"):
            tags[first:last] = TAGS.index(kind.lower())
        elif kind == "OP":
            tags[first:last] = TAGS.index("operator")
    return tags


@dataclass
class Source:
    characters: Tensor  # [N] numbers
    tags: Tensor  # [N]

    def windows(self, length: int, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Characters and tags from each start on, [length, B] both: they begin in mid-program."""
        places = starts + torch.arange(length)[:, None]
        return self.characters[places], self.tags[places]


@functools.cache
def load(files: int = 16) -> tuple[Source, Source]:
    """Modules of the standard library to train and, other ones, to test on."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(p for p in folder.glob("*.py") if 5_000 < p.stat().st_size < 80_000)
    random.Random(0).shuffle(paths)

    def read(chosen: list[Path]) -> Source:
        texts = [p.read_text(encoding="utf-8") for p in chosen]
        numbers = [[CHARACTERS.find(c) % (OTHER + 1) for c in text] for text in texts]
        characters = torch.tensor([n for part in numbers for n in part])
        return Source(characters, torch.cat([tags_of(text) for text in texts]))

    return read(paths[4 : 4 + files]), read(paths[:4])
