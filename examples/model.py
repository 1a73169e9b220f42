"""The next-word predictor, its training step and what is done with it afterwards."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .text import UNKNOWN, WORD, Text


class NextWord(nn.Module):
    """Embedding, recurrent layers, softmax. `namespace` is torch.nn or seqkern: nothing else
    differs, and a state_dict of one loads into the other."""

    def __init__(self, namespace, cell: str, words: int, size: int, layers: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.layers = getattr(namespace, cell)(size, size, num_layers=layers, dropout=dropout)
        self.head = nn.Linear(size, words)

    def forward(self, numbers: Tensor, state=None):
        """numbers [T, B] -> logits [T, B, words] and the state to go on from."""
        output, state = self.layers(self.embedding(numbers), state)
        return self.head(output), state


class Trainer:
    """One model in training; remembers each step's loss and times."""

    HISTORY = ("losses", "step_seconds", "forward_seconds", "backward_seconds")

    def __init__(self, model: NextWord, rate: float):
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
        self.losses: list[float] = []
        self.step_seconds: list[float] = []
        self.forward_seconds: list[float] = []  # in the recurrent layers alone
        self.backward_seconds: list[float] = []

    def step(self, inputs: Tensor, targets: Tensor, seed: int) -> float:
        """One step; `seed` is for the dropout masks.

        The graph is cut before and after the recurrent layers, so that their forward and backward
        are calls of their own, which can be timed.
        """
        model = self.model.train()
        torch.manual_seed(seed)
        start = time.perf_counter()
        embedded = model.embedding(inputs)
        x = embedded.detach().requires_grad_()

        forward = time.perf_counter()
        output, _ = model.layers(x)
        forward = time.perf_counter() - forward

        y = output.detach().requires_grad_()
        loss = cross_entropy(model.head(y).flatten(0, 1), targets.flatten())
        loss.backward()

        backward = time.perf_counter()
        output.backward(y.grad)
        backward = time.perf_counter() - backward

        embedded.backward(x.grad)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_seconds.append(time.perf_counter() - start)
        self.forward_seconds.append(forward)
        self.backward_seconds.append(backward)
        self.losses.append(loss.item())
        return self.losses[-1]

    def state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: list(getattr(self, name)) for name in self.HISTORY},
        }

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in self.HISTORY:
            setattr(self, name, list(state[name]))


@torch.no_grad()
def perplexity(model: nn.Module, numbers: Tensor, batch: int = 16) -> float:
    """exp of the mean loss over a text [N], read as `batch` columns from end to end."""
    model.eval()
    length = (len(numbers) - 1) // batch
    starts = torch.arange(batch) * length
    window = numbers[starts + torch.arange(length + 1)[:, None]]
    logits, _ = model(window[:-1])
    return math.exp(cross_entropy(logits.flatten(0, 1), window[1:].flatten()).item())


def frequency_perplexity(text: Text) -> float:
    """The same for one who knows how often each word comes and nothing else: a baseline."""
    counts = text.train.bincount(minlength=len(text.vocabulary)) + 1.0
    return math.exp(-(counts / counts.sum()).log()[text.valid].mean().item())


def prompt_numbers(text: Text, prompt: str) -> list[int]:
    """A prompt as numbers; ValueError names the words that the vocabulary lacks."""
    words = WORD.findall(prompt.lower())
    missing = [word for word in words if word not in text.index]
    if missing or not words:
        raise ValueError(
            f"not in the vocabulary: {', '.join(missing)}" if missing else "no word in the prompt"
        )
    return text.encode(words)


@torch.no_grad()
def continuation(
    model: nn.Module, text: Text, prompt: str, temperature: float, top_k: int, seed: int
) -> Iterator[str]:
    """Words after the prompt without end: each drawn from the `top_k` likeliest, one step each."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    logits, state = model(torch.tensor(prompt_numbers(text, prompt))[:, None])
    while True:
        scores = logits[-1, 0] / temperature
        scores[text.index[UNKNOWN]] = -math.inf
        best = scores.topk(min(top_k, len(scores)))
        drawn = torch.multinomial(best.values.softmax(0), 1, generator=generator)
        number = best.indices[drawn]
        yield text.vocabulary[number.item()]
        logits, state = model(number[None], state)
