"""The shortest time the machine allows for a case, from rates measured on the same machine.

Parts that must follow one another are added: the input product of all steps, then T recurrent steps,
each limited by arithmetic or by reading the recurrent weights, whichever takes longer; a training
step has both again for the way back, and the products that give the weight gradients.
"""

from dataclasses import dataclass
from functools import cache

import torch

from .cases import Case
from .timing import seconds_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def gates(case: Case) -> int:
    return GATES[case.cell.removesuffix("Cell")]


@dataclass
class Rates:
    product: float  # flop/s of a 2048^3 product on all threads
    read: float  # bytes/s at which one core reads its share of one direction's recurrent weights


def itemsize(case: Case) -> int:
    return getattr(torch, case.dtype).itemsize


def share(case: Case) -> int:
    """Bytes of each core's share of the recurrent weights of a layer and direction."""
    return max(gates(case) * case.H * case.H * itemsize(case) // case.threads, 1)


@cache
def product_rate(dtype: str, threads: int) -> float:
    """flop/s of torch's own 2048^3 product. bfloat16 is computed in float32: so is its limit."""
    kind = torch.float64 if dtype == "float64" else torch.float32
    a, b = torch.rand(2, 2048, 2048, dtype=kind)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.mm(a, b)
        return 2 * 2048**3 / min(seconds_of(lambda: torch.mm(a, b)) for _ in range(10))
    finally:
        torch.set_num_threads(before)


@cache
def read_rate(size: int) -> float:
    """bytes/s at which one core reads the same `size` bytes over and over.

    Row sums of an expanded buffer: every row is that buffer, and one call reads it many times, so
    the call costs nothing beside it. torch.mv, torch.dot and torch.amax were slower at every size.
    """
    count = max(size // 4, 1)
    rows = torch.rand(count).expand(max(2**23 // count, 4), count)  # 32 MB a timing
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows.sum(1)
        return rows.numel() * 4 / min(seconds_of(lambda: rows.sum(1)) for _ in range(5))
    finally:
        torch.set_num_threads(before)


def measure(case: Case) -> Rates:
    return Rates(product_rate(case.dtype, case.threads), read_rate(share(case)))


def products(case: Case) -> list[tuple[float, float, float]]:
    """Per layer, flops of one pass: input product, recurrent product, weight gradients."""
    directions = 2 if case.bidirectional else 1
    outputs = 2 * case.rows * gates(case) * case.H * directions
    parts = []
    for layer in range(case.layers):
        inputs = case.H * (directions if layer else 1)
        parts.append((outputs * inputs, outputs * case.H, outputs * (inputs + case.H)))
    return parts


def flops(case: Case) -> float:
    """All matrix products of the case, there and back."""
    train = case.mode == "train"
    return sum((1 + train) * (i + r) + train * w for i, r, w in products(case))


def seconds(case: Case, rates: Rates) -> float:
    """The roofline of a case in seconds."""
    total = 0.0
    for input_product, recurrent, weight_gradients in products(case):
        reading = share(case) * (2 if case.bidirectional else 1) / rates.read  # R once
        reading_input = reading * input_product / recurrent  # W_ih is to R as their products are
        one_way = max(input_product / rates.product, reading_input)
        one_way += max(recurrent / rates.product, case.T * reading)
        total += one_way
        if case.mode == "train":
            total += one_way + weight_gradients / rates.product
    return total
