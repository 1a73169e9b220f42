"""Handwritten digits of 8 x 8 pixels, out of scikit-learn, as tensors."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class Digits:
    images: Tensor  # [N, 8, 8] in 0..1
    labels: Tensor  # [N]


@functools.cache
def load() -> tuple[Digits, Digits]:
    """1,437 digits to train and 360 to test on."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit(
            "this example needs scikit-learn: pip install 'seqkern[examples]'"
        ) from None
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32) / 16
    labels = torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])
