"""Random configurations of the modules against torch.nn: outputs, states and every gradient."""

from __future__ import annotations

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import check_all
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

import seqkern

SIZES = st.sampled_from((1, 2, 3, 7, 8, 9, 15, 16, 17, 33))
# The same examples in every run: a failure is a failure for everyone.
EXAMPLES = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@st.composite
def layers(draw):
    """Class, constructor arguments, lengths (one per sequence), and how the input is laid out."""
    kind = draw(st.sampled_from(("LSTM", "GRU", "RNN")))
    hidden = draw(SIZES)
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if kind == "LSTM" and hidden > 1 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, hidden - 1))
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(("tanh", "relu")))
    layout = draw(st.sampled_from(("padded", "unbatched", "packed", "packed_unsorted")))
    if layout.startswith("packed"):
        lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
        lengths = sorted(lengths, reverse=True) if layout == "packed" else lengths
    else:
        lengths = [draw(st.integers(1, 12))] * (
            1 if layout == "unbatched" else draw(st.integers(0, 6))
        )

    return kind, (draw(SIZES), hidden), options, layout, lengths, draw(st.integers(1, 12))


def inputs(module, layout, lengths, steps, with_hx):
    """Random arguments in float64, as a tuple of leaves and a function that builds the call's."""
    size, batch = module.input_size, 1 if layout == "unbatched" else len(lengths)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    if layout.startswith("packed"):
        leaves = [torch.randn(n, size, dtype=torch.float64) for n in lengths]
    elif layout == "unbatched":
        leaves = [torch.randn(lengths[0], size, dtype=torch.float64)]
    else:
        shape = (batch, steps, size) if module.batch_first else (steps, batch, size)
        leaves = [torch.randn(shape, dtype=torch.float64)]
    count = len(leaves)
    if with_hx:
        batched = () if layout == "unbatched" else (batch,)
        widths = [module.proj_size or module.hidden_size]
        widths += [module.hidden_size] if module.mode == "LSTM" else []
        leaves += [torch.randn(rows, *batched, w, dtype=torch.float64) for w in widths]

    def build(leaves):
        input, states = leaves[:count], tuple(leaves[count:])
        input = (
            pack_sequence(input, enforce_sorted=layout == "packed")
            if layout.startswith("packed")
            else input[0]
        )
        return (input, states if len(states) == 2 else states[0]) if states else (input,)

    return leaves, build


def run(module, draws, build, dtype):
    """Results and gradients by name, those of several draws of the arguments stacked."""
    named = [_run(module, leaves, build, dtype) for leaves in draws]
    return {name: torch.stack([draw[name] for draw in named]) for name in named[0]}


def _run(module, leaves, build, dtype):
    leaves = [t.clone().to(dtype).requires_grad_() for t in leaves]
    results = [r for r in tree_leaves(module(*build(leaves))) if isinstance(r, torch.Tensor)]
    results = [r for r in results if r.is_floating_point()]
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(r.shape, generator=g, dtype=torch.float64).to(dtype) for r in results]
    module.zero_grad()
    torch.autograd.backward(results, weights)
    named = {f"result_{i}": r.detach() for i, r in enumerate(results)}
    named |= {f"grad_input_{i}": t.grad for i, t in enumerate(leaves)}
    return named | {f"grad_{name}": p.grad for name, p in module.named_parameters()}


def count_draws(module, batch, dtype) -> int:
    """How often to draw. In float64 torch is the reference and so without error, which leaves the
    rule's floor alone: where a handful of numbers cancel, that is no bar."""
    return 1 if dtype == torch.float32 else max(1, 64 // (module.hidden_size * max(1, batch)))


@EXAMPLES
@given(
    config=layers(), with_hx=st.booleans(), dtype=st.sampled_from((torch.float32, torch.float64))
)
def test_layers(config, with_hx, dtype):
    kind, sizes, options, layout, lengths, steps = config
    torch.manual_seed(0)
    torchs = getattr(nn, kind)(*sizes, **options, dtype=dtype)
    ours = getattr(seqkern, kind)(*sizes, **options, dtype=dtype)
    ours.load_state_dict(torchs.state_dict())
    exact = copy.deepcopy(torchs).double()
    draws = []
    for _ in range(count_draws(torchs, len(lengths), dtype)):
        leaves, build = inputs(torchs, layout, lengths, steps, with_hx)
        draws.append([t.to(dtype).double() for t in leaves])
    check_all(
        run(ours, draws, build, dtype),
        run(exact, draws, build, torch.float64),
        run(torchs, draws, build, dtype),
    )


@EXAMPLES
@given(
    kind=st.sampled_from(("LSTMCell", "GRUCell", "RNNCell")),
    sizes=st.tuples(SIZES, SIZES),
    bias=st.booleans(),
    batch=st.integers(0, 9),
    with_hx=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def test_cells(kind, sizes, bias, batch, with_hx, dtype):
    torch.manual_seed(0)
    torchs = getattr(nn, kind)(*sizes, bias=bias, dtype=dtype)
    ours = getattr(seqkern, kind)(*sizes, bias=bias, dtype=dtype)
    ours.load_state_dict(torchs.state_dict())
    exact = copy.deepcopy(torchs).double()
    states = 2 if kind == "LSTMCell" else 1
    widths = [sizes[0]] + [sizes[1]] * (states if with_hx else 0)
    draws = [
        [torch.randn(batch, width, dtype=dtype).double() for width in widths]
        for _ in range(count_draws(torchs, batch, dtype))
    ]

    def build(leaves):
        input, *hx = leaves
        return (input, tuple(hx) if states == 2 else hx[0]) if hx else (input,)

    check_all(
        run(ours, draws, build, dtype),
        run(exact, draws, build, torch.float64),
        run(torchs, draws, build, dtype),
    )
