"""lengths= and last_output against torch.nn's packing, running and unpacking."""

from __future__ import annotations

import copy

import pytest
import torch
from layers import Case, count_kernels, gradients
from tolerances import check_all
from torch import nn, zeros
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import seqkern
from seqkern import ops
from seqkern.lengths import layout

FORMS = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 3, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    ("GRU", {"bias": False, "batch_first": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"num_layers": 2, "batch_first": True}),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
]
SHORT = [FORMS[2], FORMS[4], FORMS[5]]
LENGTHS = [[3, 0, 7, 1, 7], [7, 5, 4, 2, 1], [0, 0, 0, 0, 0], [2, 4, 0, 0, 1]]
T, B, I, H = 7, 5, 6, 9

forms = pytest.mark.parametrize("kind, kwargs", FORMS)
short_forms = pytest.mark.parametrize("kind, kwargs", SHORT)


def pair(kind, kwargs, dtype=torch.float64):
    """The seqkern module and torch.nn's with the same weights."""
    ours = getattr(seqkern, kind)(I, H, **kwargs, dtype=dtype)
    torchs = getattr(nn, kind)(I, H, **kwargs, dtype=dtype)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def arguments(module, batch=B, steps=T):
    """input and hx as tensors that require grad."""
    dtype = module.weight_hh_l0.dtype
    shape = (batch, steps, I) if module.batch_first else (steps, batch, I)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or H, H] if module.mode == "LSTM" else [H]
    x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    states = [torch.randn(rows, batch, w, dtype=torch.float64) for w in widths]
    return x, [s.to(dtype).requires_grad_() for s in states]


def call(module, x, states, lengths):
    """output and the states in one list."""
    hx = None if states is None else tuple(states) if module.mode == "LSTM" else states[0]
    output, final = module(x, hx, lengths)
    return [output, *(final if module.mode == "LSTM" else (final,))]


def by_packing(module, x, states, lengths):
    """The same by pack_padded_sequence, which takes no empty sequence: those are put in afterwards."""
    lengths = torch.as_tensor(lengths)
    (kept,) = lengths.nonzero(as_tuple=True)
    dim = 0 if module.batch_first else 1
    if len(kept) == 0:
        width = (module.proj_size or H) * (2 if module.bidirectional else 1)
        return [x.new_zeros(*x.shape[:2], width), *states]
    packed = pack_padded_sequence(
        x.index_select(dim, kept), lengths[kept], module.batch_first, enforce_sorted=False
    )
    own = [s.index_select(1, kept) for s in states]
    output, final = module(packed, tuple(own) if module.mode == "LSTM" else own[0])
    steps = x.size(1 - dim)
    output, _ = pad_packed_sequence(output, module.batch_first, total_length=steps)
    final = final if module.mode == "LSTM" else (final,)
    if len(kept) == len(lengths):  # index_copy has a dtype rule of its own under autocast
        return [output, *final]
    full = output.new_zeros(*x.shape[:2], output.size(2)).index_copy(dim, kept, output)
    return [full, *(s.index_copy(1, kept, f) for s, f in zip(states, final, strict=True))]


def named(run, module, x, states, lengths) -> dict:
    """Results and gradients of one fixed random linear loss."""
    leaves = [x, *states, *module.parameters()]
    results = run(module, x, states, lengths)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(r.shape, generator=g, dtype=torch.float64).to(r.dtype) for r in results]
    loss = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    names = ["input", *(f"state {i}" for i in range(len(states)))]
    names += [name for name, _ in module.named_parameters()]
    found = {f"grad {n}": zeros_if_none(v, p) for n, v, p in zip(names, grads, leaves, strict=True)}
    return found | {f"result {i}": r.detach() for i, r in enumerate(results)}


def zeros_if_none(grad, leaf):
    return torch.zeros_like(leaf) if grad is None else grad


@forms
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=("f64", "f32"))
def test_same_as_packing(kind, kwargs, lengths, dtype):
    ours, torchs = pair(kind, kwargs, dtype)
    x, states = arguments(ours)
    actual = named(call, ours, x, states, lengths)
    theirs = named(by_packing, torchs, x, states, lengths)
    wide = torchs.double()
    x, *states = [t.detach().double().requires_grad_() for t in (x, *states)]
    check_all(actual, named(by_packing, wide, x, states, lengths), theirs)


@forms
def test_padding_is_not_looked_at(kind, kwargs):
    """Anything may stand there; what comes out there is zero, and so is its gradient."""
    module, _ = pair(kind, kwargs)
    lengths = torch.tensor(LENGTHS[0])
    x, states = arguments(module)
    expected = call(module, x, states, lengths)
    padding = torch.arange(T).unsqueeze(1) >= lengths
    padding = padding.t() if module.batch_first else padding
    spoilt = x.detach().masked_fill(padding.unsqueeze(2), torch.nan).requires_grad_()
    results = call(module, spoilt, states, lengths)
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    assert (results[0][padding] == 0).all() and (results[0][~padding] != 0).any()
    (grad,) = torch.autograd.grad(sum(r.exp().sum() for r in results), spoilt)
    assert (grad[padding] == 0).all() and (grad[~padding] != 0).all()


class rows_computed(TorchDispatchMode):
    """The number of rows in each call of a layer's op, and the other ops of seqkern."""

    def __init__(self):
        super().__init__()
        self.rows, self.others = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "seqkern":
            if func.__name__.startswith("lstm"):
                self.rows.append(args[0].size(0))
            else:
                self.others.append(func.__name__.removesuffix(".default"))
        return func(*args, **(kwargs or {}))


def test_no_work_on_padding_and_packed_once():
    module, _ = pair("LSTM", {"num_layers": 3, "bidirectional": True})
    x, states = arguments(module)
    with rows_computed() as mode:
        output, _, _ = call(module, x, states, [3, 0, 7, 1, 7])
        output.sum().backward()
    assert mode.rows == [18] * 6
    there_and_back = ["gather_rows", "scatter_rows"]
    assert mode.others == ["layout", *there_and_back, *there_and_back]


@pytest.mark.parametrize(
    "dtype", (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16)
)
def test_integer_dtypes_and_lists(dtype):
    module, _ = pair("GRU", {})
    x, _ = arguments(module)
    expected = call(module, x, None, torch.tensor([3, 0, 7, 1, 7]))
    for lengths in (torch.tensor([3, 0, 7, 1, 7], dtype=dtype), [3, 0, 7, 1, 7], (3, 0, 7, 1, 7)):
        torch.testing.assert_close(call(module, x, None, lengths), expected, rtol=0, atol=0)


@forms
def test_full_lengths_are_as_none(kind, kwargs):
    module, _ = pair(kind, kwargs)
    x, states = arguments(module)
    torch.testing.assert_close(
        named(call, module, x, states, [T] * B), named(call, module, x, states, None)
    )


@short_forms
def test_empty_batch(kind, kwargs):
    module, _ = pair(kind, kwargs)
    x, states = arguments(module, batch=0)
    for lengths in ([], torch.empty(0, dtype=torch.int32)):
        results = named(call, module, x, states, lengths)
        torch.testing.assert_close(results, named(call, module, x, states, None))


@forms
def test_all_empty(kind, kwargs):
    module, _ = pair(kind, kwargs)
    x, states = arguments(module)
    output, *final = call(module, x, states, [0] * B)
    assert not output.any()
    torch.testing.assert_close(final, states, rtol=0, atol=0)
    assert all(not s.any() for s in call(module, x, None, zeros(B, dtype=torch.int64)))


@short_forms
def test_dropout(kind, kwargs):
    """Masks come in the order of the packed rows, as in torch (in float32, where torch draws alike)."""
    ours, torchs = pair(kind, kwargs | {"dropout": 0.5}, torch.float32)
    x, states = arguments(ours)
    lengths = [3, 6, 7, 1, 5]
    torch.manual_seed(2)
    actual = call(ours, x, states, lengths)
    torch.manual_seed(2)
    torch.testing.assert_close(actual, by_packing(torchs, x, states, lengths))
    ours.dropout = torchs.dropout = 1.0
    expected = by_packing(torchs, x, states, [3, 0, 7, 1, 5])
    torch.testing.assert_close(call(ours, x, states, [3, 0, 7, 1, 5]), expected)


@pytest.mark.parametrize("lengths", ([2, 0, 3], [3, 3, 1], [0, 0, 0]), ids=str)
@short_forms
def test_second_derivatives(kind, kwargs, lengths):
    if "proj_size" in kwargs:
        kwargs = kwargs | {"proj_size": 2}
    module = getattr(seqkern, kind)(2, 3, **kwargs, dtype=torch.float64)
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)

    def function(x):
        return module(x, lengths=lengths)[0]

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("kind, kwargs", FORMS[:1] + FORMS[3:4])
def test_strides(kind, kwargs):
    module, _ = pair(kind, kwargs)
    x, states = arguments(module)
    other = x.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not other.is_contiguous()
    torch.testing.assert_close(
        call(module, other, states, LENGTHS[0]), call(module, x, states, LENGTHS[0])
    )


@short_forms
@pytest.mark.parametrize("lengths", ([3, 6, 7, 1, 7], [7] * 5, [4] * 5), ids=str)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(kind, kwargs, dtype, lengths):
    """As with a PackedSequence."""
    module, _ = pair(kind, kwargs, torch.float32)
    x, states = arguments(module)
    with torch.autocast("cpu", dtype):
        expected = by_packing(module, x, states, lengths)
        actual = call(module, x, states, lengths)
    assert [r.dtype for r in actual] == [r.dtype for r in expected]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_copies_and_converted_modules():
    torchs = nn.GRU(I, H, 2)
    module = seqkern.convert(torchs)
    x = torch.randn(T, B, I)
    states = [zeros(2, B, H)]
    expected = by_packing(torchs, x, states, LENGTHS[0])
    for one in (module, copy.deepcopy(module)):
        torch.testing.assert_close(call(one, x, None, LENGTHS[0]), expected)
    with seqkern.patch():
        patched = nn.GRU(I, H, 2)
    patched.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(call(patched, x, None, LENGTHS[0]), expected)


def test_meta_device():
    module = seqkern.LSTM(I, H, bidirectional=True, device="meta")
    for lengths in ([3, 0, 7, 1, 7], zeros(B, dtype=torch.int64, device="meta")):
        output, (h_n, c_n) = module(torch.empty(T, B, I, device="meta"), lengths=lengths)
        assert output.shape == (T, B, 2 * H) and h_n.shape == c_n.shape == (2, B, H)
        assert output.is_meta


# ---- torch.func ----


@short_forms
def test_vmap(kind, kwargs):
    """Over batches that share their lengths, and over batches with their own."""
    module, _ = pair(kind, kwargs)
    inputs = torch.stack([arguments(module)[0] for _ in range(3)]).detach()
    lengths = torch.tensor(LENGTHS[:2] + LENGTHS[3:])

    def one(x, lengths):
        return call(module, x, None, lengths)

    for in_dims, given in (((0, None), [lengths[0]] * 3), ((0, 0), lengths)):
        expected = [torch.stack(r) for r in zip(*map(one, inputs, given), strict=True)]
        own = lengths if in_dims[1] == 0 else lengths[0]
        torch.testing.assert_close(torch.vmap(one, in_dims)(inputs, own), expected)


@short_forms
def test_batched_gradients(kind, kwargs):
    ours, _ = pair(kind, kwargs)
    x, states = arguments(ours)
    output = call(ours, x, states, LENGTHS[0])[0]
    grads = torch.randn(3, *output.shape, dtype=x.dtype)
    inputs = [x, *states]
    together = torch.autograd.grad(output, inputs, grads, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(output, inputs, g, retain_graph=True) for g in grads]
    for batched, each in zip(together, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(batched, torch.stack(each))


@short_forms
def test_func_grad(kind, kwargs):
    module, _ = pair(kind, kwargs)
    inputs = torch.stack([arguments(module)[0] for _ in range(2)]).detach()
    lengths = torch.tensor(LENGTHS[:2])
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights, x, lengths):
        output, _ = torch.func.functional_call(module, weights, (x,), {"lengths": lengths})
        return output.sin().sum()

    expected = []
    for x, own in zip(inputs, lengths, strict=True):
        grads = torch.autograd.grad(
            loss(dict(module.named_parameters()), x, own), module.parameters()
        )
        expected.append(grads)
        torch.testing.assert_close(tuple(torch.func.grad(loss)(weights, x, own).values()), grads)
    per_sample = torch.vmap(torch.func.grad(loss), (None, 0, 0))(weights, inputs, lengths)
    expected = [torch.stack(g) for g in zip(*expected, strict=True)]
    torch.testing.assert_close(list(per_sample.values()), expected)


def test_forward_mode():
    module, _ = pair("LSTM", {"bidirectional": True})
    x, _ = arguments(module)
    x, tangent = x.detach(), torch.randn_like(x)

    def run(x):
        return module(x, lengths=LENGTHS[0])[0]

    (_, derivative), (_, vjp) = torch.func.jvp(run, (x,), (tangent,)), torch.func.vjp(run, x)
    cotangent = torch.randn_like(derivative)
    (pulled,) = vjp(cotangent)
    torch.testing.assert_close((derivative * cotangent).sum(), (pulled * tangent).sum())


# ---- The operators' rows left over ----


def left_over(cell, sizes, D):
    """A case and arguments with more rows and states than its sizes have."""
    case = Case(cell, I=I, H=H, D=D, batch_sizes=sizes)
    own = case.arguments()
    more = {"input": torch.randn(10, I, dtype=torch.float64)}
    for name in ("h_0", "c_0") if cell == "lstm" else ("h_0",):
        more[name] = torch.randn(D, 4, H, dtype=torch.float64)
    return case, own | more


@pytest.mark.parametrize("cell", ops.CELLS)
@pytest.mark.parametrize("sizes", ((3, 2, 0, 0), (4, 4, 0)), ids=str)
@pytest.mark.parametrize("D", (1, 2))
def test_rows_left_over(cell, sizes, D):
    """Output is zero there, states are as they were, gradients accordingly."""
    case, arguments = left_over(cell, sizes, D)
    actual = gradients(lambda *t: case.call(seqkern.functional, *t), arguments)
    expected = gradients(lambda *t: case.call(seqkern.reference, *t), arguments)
    torch.testing.assert_close(actual, expected)
    used = sum(sizes)
    assert not actual["output"][used:].any() and not actual["grad_input"][used:].any()
    assert torch.equal(actual["h_n"][:, sizes[0] :], arguments["h_0"][:, sizes[0] :])


@pytest.mark.parametrize("cell", ops.CELLS)
@pytest.mark.parametrize("sizes", ((3, 2, 0, 0), (0, 0)), ids=str)
def test_opcheck_rows_left_over(cell, sizes):
    _, arguments = left_over(cell, sizes, 2)
    input, h_0, *rest = arguments.values()
    c_0, params = (rest[0], rest[1:]) if cell == "lstm" else (None, rest)
    arguments = (input, torch.tensor(sizes), h_0, c_0, params)
    output, h_n, c_n, gates, cells = ops.FORWARD[cell](*arguments, "gates")
    if sizes[0] == 0:  # nothing is saved there that means something
        gates.zero_()
        cells.zero_()
    else:
        torch.library.opcheck(ops.FORWARD[cell], (*arguments, "gates"))
    torch.library.opcheck(ops.FORWARD[cell], (*arguments, "none"))
    grads = (output, h_n, c_n if cell == "lstm" else None)
    for flags in ((True, True, True, False), (False, False, False, True)):
        arguments_back = (*grads, *arguments, output, gates, cells, *flags)
        torch.library.opcheck(ops.BACKWARD[cell], arguments_back)


# ---- last_output ----


@forms
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_last_output(kind, kwargs, lengths):
    """The last layer's final states from zeros, side by side."""
    module, _ = pair(kind, kwargs)
    x, _ = arguments(module)
    output, h_n, *_ = call(module, x, None, lengths)
    own = {name: getattr(module, name) for name in ("batch_first", "bidirectional")}
    last = seqkern.last_output(output, lengths, **own)
    expected = torch.cat(h_n[-2 if module.bidirectional else -1 :].unbind(0), 1)
    torch.testing.assert_close(last, expected, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(last.sum(), output)
    assert grad.sum() == last.size(1) * sum(n > 0 for n in lengths)


@pytest.mark.parametrize(
    "output, lengths, kwargs, message",
    [
        (zeros(5, 4), [1], {}, r"output must be \[T, B, D\*W\].*got \[5, 4\]"),
        (zeros(5, 2, 3), [1, 1], {"bidirectional": True}, "output must have an even last"),
        (zeros(0, 2, 4), [0, 0], {}, "output must have at least one time step"),
        (zeros(5, 2, 4), [1, 1, 1], {}, r"lengths must be \[B\] = \[2\], got \[3\]"),
        (zeros(5, 2, 4), [1, 6], {}, "lengths must lie between 0 and T = 5, got 6"),
    ],
)
def test_last_output_errors(output, lengths, kwargs, message):
    with pytest.raises(ValueError, match=message):
        seqkern.last_output(output, lengths, **kwargs)


# ---- Errors and what goes to torch ----


@pytest.mark.parametrize(
    "lengths, error, message",
    [
        ([1, 2, 3], ValueError, r"lengths must be \[B\] = \[5\], got \[3\]"),
        ([[1]] * 5, ValueError, r"lengths must be \[B\] = \[5\], got \[5, 1\]"),
        ([1.0] * 5, ValueError, r"lengths must be integers, got torch.float32"),
        ([True] * 5, ValueError, "lengths must be integers, got torch.bool"),
        ([1, 2, 8, 3, 4], ValueError, "lengths must lie between 0 and T = 7, got 8"),
        ([1, 2, -1, 3, 4], ValueError, "lengths must lie between 0 and T = 7, got -1"),
        (3, TypeError, "lengths must be a tensor or a list of integers, got int"),
    ],
)
@pytest.mark.parametrize("batch_first", (False, True))
def test_errors(lengths, error, message, batch_first):
    module = seqkern.GRU(I, H, batch_first=batch_first)
    x = torch.randn((B, T, I) if batch_first else (T, B, I))
    given = [lengths] if isinstance(lengths, int) else [lengths, torch.tensor(lengths)]
    for one in given:
        with pytest.raises(error, match=message):
            module(x, lengths=one)


def test_errors_of_the_input():
    module = seqkern.LSTM(I, H)
    packed = pack_padded_sequence(torch.randn(T, 2, I), [7, 3])
    with pytest.raises(ValueError, match="lengths must be None with a PackedSequence"):
        module(packed, None, [7, 3])
    with pytest.raises(ValueError, match="lengths must be None with unbatched input"):
        module(torch.randn(T, I), lengths=[7])
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        module(torch.randn(0, 2, I), lengths=[0, 0])
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
        module(torch.randn(T, 2, I), (zeros(1, 3, H), zeros(1, 3, H)), [7, 3])
    with pytest.raises(RuntimeError, match="input.size.-1. must be equal to input_size"):
        module(torch.randn(T, 2, I + 1), lengths=[7, 3])


class Output(nn.Module):
    """A model around a layer, for what sees through models."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None):
        return self.layer(x, None, lengths)[0]


@pytest.mark.parametrize("kind", ("LSTM", "GRU", "RNN"))
def test_script(kind):
    model = Output(getattr(seqkern, kind)(I, H))
    scripted = torch.jit.script(model)
    x = torch.randn(T, B, I)
    torch.testing.assert_close(scripted(x), model(x))
    with pytest.raises(torch.jit.Error, match="lengths must be None in TorchScript"):
        scripted(x, torch.tensor([1] * B))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace():
    model = Output(seqkern.GRU(I, H))
    arguments = torch.randn(T, B, I), torch.tensor(LENGTHS[0])
    with pytest.raises(RuntimeError, match="lengths can't be taken by torch.jit.trace"):
        torch.jit.trace(model, arguments)


def test_fx():
    model = Output(seqkern.LSTM(I, H))
    arguments = torch.randn(T, B, I), torch.tensor(LENGTHS[0])
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(*arguments), model(*arguments))


def test_one_call_a_layer():
    module, _ = pair("GRU", {"num_layers": 2, "bidirectional": True})
    x, _ = arguments(module)
    with count_kernels() as calls:
        call(module, x, None, LENGTHS[0])[0].sum().backward()
    rows = {"layout": 1, "gather_rows": 2, "scatter_rows": 2}  # there and back, and in backward
    assert calls == {"gru_forward": 2, "gru_backward": 2, **rows}


@pytest.mark.parametrize("batch_first", (False, True))
def test_layout_operator_is_the_arithmetic(batch_first):
    """What eager mode asks an operator for, torch.compile computes."""
    lengths = torch.tensor([3, 0, 7, 1, 7, 0])
    padded = torch.randn(*(6, 8) if batch_first else (8, 6), 2)
    eager = layout(lengths, padded, batch_first)

    def arithmetic(lengths):
        made = layout(lengths, padded, batch_first)
        assert made.padding is None
        return made.batch_sizes, made.source, made.order, made.place

    traced = torch.func.vmap(arithmetic)(lengths.unsqueeze(0))
    batch_sizes, source, order, place = (t[0] for t in traced)
    assert torch.equal(eager.batch_sizes, batch_sizes)
    everywhere = torch.cat([eager.source, eager.padding]).sort().values
    assert torch.equal(everywhere, torch.arange(48))
    assert torch.equal(eager.source, source[:18])
    assert torch.equal(eager.order, order) and torch.equal(eager.place, place)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.complex64), ids=str)
def test_rows_there_and_back(dtype):
    padded = torch.randn(2000, 40).to(dtype)  # enough for several threads
    index = torch.randperm(2000)
    source, padding = index[:900].contiguous(), index[900:].contiguous()
    rows = torch.ops.seqkern.gather_rows(padded, source)
    assert torch.equal(rows, padded[source])
    back = torch.ops.seqkern.scatter_rows(rows, source, padding)
    expected = padded.index_fill(0, padding, 0)
    assert torch.equal(back, expected)
    assert torch.equal(
        torch.ops.seqkern.scatter_rows(rows.t().contiguous().t(), source, padding), expected
    )


def test_row_operators_name_what_does_not_fit():
    rows, index = torch.zeros(3, 2), torch.arange(3)
    for call, message in (
        (lambda: torch.ops.seqkern.gather_rows(rows[0], index), "padded must be a 2-D CPU tensor"),
        (
            lambda: torch.ops.seqkern.gather_rows(rows, index.int()),
            "source must be a contiguous 1-D int64",
        ),
        (lambda: torch.ops.seqkern.gather_rows(rows, index + 1), "source must lie in the 3 rows"),
        (lambda: torch.ops.seqkern.gather_rows(rows, index - 1), "source must lie in the 3 rows"),
        (
            lambda: torch.ops.seqkern.scatter_rows(rows, index[:2], index[2:]),
            "must have the 2 rows of source",
        ),
        (
            lambda: torch.ops.seqkern.scatter_rows(rows, index + 2, index[:1]),
            "must lie in their 4 rows",
        ),
        (
            lambda: torch.ops.seqkern.scatter_rows(rows, index, index[:1] - 1),
            "must lie in their 4 rows",
        ),
        (lambda: ops.LAYOUT(rows, 3, False), "lengths must be a contiguous 1-D int64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    with pytest.raises(ValueError, match="lengths must lie between 0 and T = 3, got 4"):
        ops.LAYOUT(index + 2, 3, False)
