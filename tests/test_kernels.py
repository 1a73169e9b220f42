"""The kernels, one layer at a time, through seqkern.functional and the raw ops."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import pytest
import torch
from layers import CELLS, Case, check_levels, check_runs, gradients
from tolerances import check, check_agree, check_no_worse

from seqkern import _C, functional, ops, reference, use_cpu_capability

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Every cell, and the projected LSTM beside them.
KINDS = tuple((cell, False) for cell in CELLS) + (("lstm", True),)


def case(kind, **sizes) -> Case:
    cell, projected = kind
    return Case(cell, P=max(1, sizes["H"] // 2) if projected and sizes["H"] > 1 else 0, **sizes)


def name(kind) -> str:
    return f"{kind[0]}_projected" if kind[1] else kind[0]


@pytest.mark.parametrize("H", (1, 3, 15, 16, 17, 64, 130))
@pytest.mark.parametrize("B", (0, 1, 5, 33))
@pytest.mark.parametrize("T", (1, 2, 50))
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_float32_sizes(kind, T, B, H):
    check_levels(case(kind, T=T, B=B, I=7, H=H), torch.float32)


# Among so many units one may have a sum so near to 0 that relu's gradient is another by rounding.
@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] != "rnn_relu"], ids=name)
def test_weight_gradients(kind):
    """Of both weights at once or apart, from inputs that are packed or read as they lie, of one column, or a few rows."""
    sizes = (3, 200, 640, 32), (3, 20, 300, 24), (2, 24, 48, 64), (3, 20, 1, 24), (2, 3, 20, 32)
    for T, B, I, H in sizes:
        check_levels(case(kind, T=T, B=B, I=I, H=H), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no_bias"))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_dtypes_directions_biases(kind, D, bias, dtype):
    for T, B, I, H in ((1, 1, 1, 2), (4, 3, 5, 7), (9, 6, 16, 33)):
        check_levels(case(kind, T=T, B=B, I=I, H=H, D=D, bias=bias), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_ragged(kind, D, dtype):
    for sizes in ((1,), (4,), (3, 3, 2, 1, 1), (17, 9, 9, 1), (2,) * 6):
        check_levels(case(kind, I=5, H=17, D=D, batch_sizes=sizes), dtype)


# A state of zeros has no products.
FROM_ZERO = (
    {"T": 1, "B": 1, "H": 1},
    {"T": 1, "B": 3, "H": 18, "D": 2},
    {"T": 1, "B": 70, "H": 34},
    {"T": 2, "B": 1, "H": 20, "D": 2},
    {"T": 30, "B": 33, "H": 16, "D": 2},
    {"T": 3, "B": 1100, "H": 64},  # a chunk of the first step alone
    {"batch_sizes": (4,), "H": 17},
    {"batch_sizes": (70, 40, 9, 9, 1), "H": 16, "D": 2},
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_from_zero(kind, dtype):
    for sizes in FROM_ZERO:
        check_levels(case(kind, **sizes, I=5, from_zero=True), dtype)


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_from_zero_with_states_alone(kind):
    for sizes in FROM_ZERO:
        layer = case(kind, **sizes, I=5, from_zero=True)
        check_runs(layer, torch.float32, {"states": nullcontext()}, save="states")


@pytest.mark.skipif(
    hasattr(torch.ops.seqkern_cuda_host, "tiers"), reason="the CUDA kernels multiply them"
)
@pytest.mark.parametrize("B", (2, 70))
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_zeros_are_not_multiplied(capability, kind, B):
    """Not even with what is not finite, nor are they by the step of a cell."""
    layer = case(kind, T=1, B=B, I=5, H=16, from_zero=True)
    arguments = layer.arguments(torch.float32)
    finite = gradients(lambda *t: layer.call(functional, *t), arguments)
    with_nan = arguments | {"w_hh_0": torch.full_like(arguments["w_hh_0"], float("nan"))}
    results = gradients(lambda *t: layer.call(functional, *t), with_nan)
    for key in set(finite) - {"grad_h_0"}:
        assert torch.equal(results[key], finite[key]), key
    assert not results["grad_w_hh_0"].any()
    # Nor in a layer of several steps, few rows in all, where they have weights as they lie.
    longer = case(kind, T=2, B=B, I=5, H=16, from_zero=True)
    tensors = longer.arguments(torch.float32)
    tensors["w_hh_0"].fill_(float("nan"))
    output = longer.call(functional, *tensors.values())[0]
    assert output[0].isfinite().all() and output[1].isnan().all()
    if not layer.P:
        tensors = [t[0] if n in ("input", "h_0", "c_0") else t for n, t in with_nan.items()]
        stepped = ops.STEP[layer.cell](*tensors)
        h = stepped[0] if layer.cell == "lstm" else stepped
        torch.testing.assert_close(h, finite["h_n"][0])


@pytest.mark.parametrize("cell", CELLS)
def test_ragged_with_equal_lengths_is_padded(capability, cell):
    padded, ragged = Case(cell, T=5, B=3, H=17), Case(cell, batch_sizes=(3,) * 5, H=17)
    a = gradients(lambda *t: padded.call(functional, *t), padded.arguments(torch.float32))
    arguments = padded.arguments(torch.float32)
    arguments["input"] = arguments["input"].flatten(0, 1)
    b = gradients(lambda *t: ragged.call(functional, *t), arguments)
    for key in a:
        torch.testing.assert_close(a[key].flatten(), b[key].flatten(), msg=key)


# What is not a number, and what is too large, stays where it is.


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
@pytest.mark.parametrize("cell", CELLS)
def test_bad_row_stays_alone(capability, cell, bad, dtype):
    c = Case(cell, T=4, B=9, I=5, H=19, D=2)
    arguments = c.arguments(dtype)
    clean = [r.detach() for r in c.call(functional, *arguments.values())]
    arguments["input"][1, 6] = bad
    dirty = c.call(functional, *arguments.values())
    others = [row for row in range(9) if row != 6]
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[:, others], b[:, others])
    if torch.tensor(bad).isnan():
        assert dirty[0][1:, 6, :19].isnan().all() and dirty[0][:2, 6, 19:].isnan().all()


@pytest.mark.parametrize("cell", CELLS)
def test_bad_row_gradient_stays_alone(capability, cell):
    c = Case(cell, T=4, B=9, I=5, H=19)
    arguments = c.arguments(torch.float32)
    clean = gradients(lambda *t: c.call(functional, *t), arguments)
    arguments["input"][1, 6] = float("nan")
    dirty = gradients(lambda *t: c.call(functional, *t), arguments)
    with torch.backends.mkldnn.flags(enabled=False):
        torchs = gradients(c.call_torch, arguments)
    others = [row for row in range(9) if row != 6]
    for key in ("grad_input", "grad_h_0"):
        assert torch.equal(clean[key][:, others], dirty[key][:, others])
    for key, value in dirty.items():
        assert torch.equal(value.isnan(), torchs[key].isnan()), key


@pytest.mark.parametrize("value", (1e4, -1e4, 3e38, -3e38, float("inf"), -float("inf")))
@pytest.mark.parametrize("cell", CELLS)
def test_saturation_is_torchs(capability, cell, value):
    """Gates driven to their ends, by finite and infinite input, give torch's values."""
    # Without bound, relu's sums overflow or not by the order of their terms.
    steps = 2 if cell == "rnn_relu" else 3
    c = Case(cell, T=steps, B=2, I=1, H=19)
    arguments = c.arguments(torch.float32)
    arguments["input"][1] = value
    ours = c.call(functional, *arguments.values())
    exact = c.call(reference, *(t.double() for t in arguments.values()))
    # Not through oneDNN, whose LSTM makes NaN of some of these.
    with torch.backends.mkldnn.flags(enabled=False):
        torchs = c.call_torch(*arguments.values())
    for a, b, e in zip(ours, torchs, exact, strict=True):
        finite = b.isfinite()
        assert torch.equal(a[~finite].nan_to_num(5), b[~finite].nan_to_num(5))
        check(a[finite], e[finite], b[finite])


# Layout of the arguments.


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same numbers at odd strides: every dimension reversed in memory, with gaps between
    elements."""
    room = torch.full([2 * s + 1 for s in reversed(t.shape)], 1e30, dtype=t.dtype)
    view = room.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
    view.copy_(t)
    return view


@pytest.mark.parametrize("sizes", (None, (3, 2, 2)), ids=("padded", "ragged"))
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_strides(capability, kind, sizes):
    c = case(kind, T=3, B=3, I=5, H=9, D=2, batch_sizes=sizes)
    arguments = c.arguments(torch.float32)
    plain = gradients(lambda *t: c.call(functional, *t), arguments)

    def call(*tensors):
        results = c.call(functional, *(strided_view(t) for t in tensors))
        assert all(r.is_contiguous() for r in results)
        return results

    class strided_view(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return strided(t)

        @staticmethod
        def backward(ctx, grad):
            return grad

        def __new__(cls, t):
            return cls.apply(t)

    odd = gradients(call, arguments)
    for key in plain:
        torch.testing.assert_close(odd[key], plain[key], msg=key)


def test_expanded_gradient(capability):
    """The gradient of a sum arrives with strides of zero."""
    c = Case("lstm", T=3, B=2, H=17)
    tensors = [t.requires_grad_() for t in c.arguments(torch.float32).values()]
    c.call(functional, *tensors)[0].sum().backward()
    other = [t.requires_grad_() for t in c.arguments(torch.float32).values()]
    output = c.call(functional, *other)[0]
    output.backward(torch.ones_like(output))
    for a, b in zip(tensors, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("cell", CELLS)
def test_results_own_their_memory(capability, cell):
    c = Case(cell, T=1, B=2, H=4)
    tensors = list(c.arguments(torch.float32).values())
    results = [*c.call(functional, *tensors)]
    pointers = {t.untyped_storage().data_ptr() for t in (*tensors, *results)}
    assert len(pointers) == len(tensors) + len(results)


# The raw ops.


def op_arguments(c: Case, dtype=torch.float32, save="gates"):
    arguments = c.arguments(dtype)
    input, h_0, c_0 = arguments.pop("input"), arguments.pop("h_0"), arguments.pop("c_0", None)
    return input, c.sizes(), h_0, c_0, list(arguments.values()), save


@pytest.mark.parametrize("sizes", (None, (3, 2, 2)), ids=("padded", "ragged"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_saved_tensors(capability, cell, dtype, sizes):
    """gates and cells hold what the schema says, step by step."""
    c = Case(cell, T=3, B=3, I=5, H=9, D=2, batch_sizes=sizes)
    input, batch_sizes, h_0, c_0, params, _ = op_arguments(c, dtype)
    output, h_n, c_n, gates, cells = ops.FORWARD[cell](
        input, batch_sizes, h_0, c_0, params, "gates"
    )
    rows = output.numel() // output.size(-1)
    saved = {"lstm": 4, "gru": 4}.get(cell, 0)
    assert gates.shape == (2, rows, saved * 9) and gates.dtype == dtype
    if cell == "lstm":
        assert cells.shape == (2, rows, 9)
        assert cells.dtype == torch.promote_types(dtype, torch.float32)
        # h = o * tanh(c)
        o = gates.double()[..., 27:]
        h = output.double().view(rows, 2, 9).transpose(0, 1)
        torch.testing.assert_close(
            (o * cells.double().tanh()), h, atol=8 * torch.finfo(dtype).eps, rtol=0
        )
    else:
        assert cells.shape == (0,) and c_n.shape == (0,)
    none = ops.FORWARD[cell](input, batch_sizes, h_0, c_0, params, "none")
    assert none[3].shape == none[4].shape == (0,)
    for a, b in zip(none[:3], (output, h_n, c_n), strict=True):
        assert torch.equal(a, b)


def stepwise_gradients(c: Case, tensors, grads):
    """dLoss/dh_t and dLoss/dc_t as the op orders them: the reference, stopped at every step."""
    input, batch_sizes, h_0, c_0, params = tensors
    sizes = [c.B] * c.T if batch_sizes is None else batch_sizes.tolist()
    own = len(params) // c.D
    rows = list(
        zip(input.reshape(-1, c.I).split(sizes), grads[0].flatten(0, -2).split(sizes), strict=True)
    )
    by_direction = []
    for d in range(c.D):
        state = [t[d] for t in (h_0, c_0) if t is not None]
        steps, loss = {}, 0
        for t in range(c.T) if d == 0 else reversed(range(c.T)):
            (x, grad), n = rows[t], sizes[t]
            began = [s[None, :n] for s in state]
            _, *new = reference.layer(
                c.cell,
                x[None],
                None,
                began[0],
                *began[1:] or [None],
                params[d * own : (d + 1) * own],
            )
            steps[t] = [s[0].requires_grad_() for s in new]
            state = [torch.cat([s, old[n:]]) for s, old in zip(steps[t], state, strict=True)]
            loss = loss + (steps[t][0] * grad.chunk(c.D, -1)[d]).sum()
        loss = loss + sum((s * g[d]).sum() for s, g in zip(state, grads[1:], strict=False))
        found = torch.autograd.grad(loss, [s for t in range(c.T) for s in steps[t]])
        by_direction.append([torch.cat(found[i :: len(state)]) for i in range(len(state))])
    return [torch.stack(s) for s in zip(*by_direction, strict=True)]


@pytest.mark.parametrize("save", ("gates", "states"))
@pytest.mark.parametrize("sizes", (None, (3, 2, 2)), ids=("padded", "ragged"))
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_step_gradients(capability, kind, sizes, save):
    """step_grad_h and step_grad_c are the loss's total derivatives by every step's h and c."""
    c = case(kind, T=3, B=3, I=5, H=6, D=2, batch_sizes=sizes)
    *tensors, _ = op_arguments(c, torch.float64)
    results = ops.FORWARD[c.cell](*tensors, save)
    grads = [torch.randn_like(t) if t.numel() else None for t in results[:3]]
    *_, step_h, step_c = ops.BACKWARD[c.cell](
        *grads, *tensors, results[0], *results[3:], False, False, False, True
    )
    expected = stepwise_gradients(c, tensors, grads)
    check(step_h, expected[0], expected[0], "step_grad_h")
    if c.cell == "lstm":
        # Of c_t's total derivative the reference saw what goes to the next step; the rest is
        # through h_t.
        _, _, _, gates, cells = ops.FORWARD[c.cell](*tensors, "gates")
        own = len(tensors[-1]) // c.D
        w_hr = torch.stack(tensors[-1][own - 1 :: own]) if c.P else torch.eye(c.H)
        hidden = step_h @ w_hr.double()
        total = expected[1] + hidden * gates[..., 3 * c.H :] * (1 - cells.tanh() ** 2)
        check(step_c, total, total, "step_grad_c")
    else:
        assert step_c.shape == (0,)


@pytest.mark.parametrize("sizes", (None, (9, 4, 4)), ids=("padded", "ragged"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_states_alone_are_enough(capability, kind, dtype, sizes):
    """save='states' keeps c_t alone, and backward computes the gates again: the same gradients."""
    c = case(kind, T=3, B=9, I=5, H=17, D=2, batch_sizes=sizes)
    *tensors, _ = op_arguments(c, dtype)
    grads = {}
    for save in ("gates", "states"):
        results = ops.FORWARD[c.cell](*tensors, save)
        assert save == "gates" or results[3].shape == (0,)
        ones = [torch.ones_like(t) if t.numel() else None for t in results[:3]]
        *some, params, _, _ = ops.BACKWARD[c.cell](
            *ones, *tensors, results[0], *results[3:], True, True, True, False
        )
        grads[save] = [*some, *params]
    for a, b in zip(*grads.values(), strict=True):
        check(b, a.double(), a)


@pytest.mark.parametrize(
    "needs_input, needs_h_0, needs_params",
    list(itertools.product((True, False), repeat=3)),
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_backward_returns_what_is_asked(capability, cell, needs_input, needs_h_0, needs_params):
    c = Case(cell, T=3, B=2, I=5, H=9)
    input, _, h_0, c_0, params, _ = op_arguments(c)
    output, h_n, c_n, gates, cells = ops.FORWARD[cell](input, None, h_0, c_0, params, "gates")
    grads = (
        torch.ones_like(output),
        torch.ones_like(h_n),
        None if c_0 is None else torch.ones_like(c_n),
    )
    saved = (input, None, h_0, c_0, params, output, gates, cells)
    everything = ops.BACKWARD[cell](*grads, *saved, True, True, True, False)
    some = ops.BACKWARD[cell](*grads, *saved, needs_input, needs_h_0, needs_params, False)
    assert torch.equal(some[2], everything[2])
    for i, needed in enumerate((needs_input, needs_h_0)):
        if needed:
            assert torch.equal(some[i], everything[i])
        else:
            assert some[i].shape == (0,)
    assert len(some[3]) == (len(params) if needs_params else 0)
    for a, b in zip(some[3], everything[3], strict=False):
        assert torch.equal(a, b)
    assert some[4].shape == some[5].shape == (0,)


def test_raw_op_says_that_it_has_no_derivative():
    input, sizes, h_0, c_0, params, save = op_arguments(Case("gru"))
    output = ops.FORWARD["gru"](input.requires_grad_(), sizes, h_0, c_0, params, save)[0]
    with pytest.raises(
        RuntimeError, match="derivative for seqkern::gru_forward is not implemented"
    ):
        output.sum().backward()


# Error messages: the argument, what was expected, what came.


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": torch.zeros(3, 3)}, r"input must be \[T, B, I\], got \[3, 3\]"),
        ({"input": torch.zeros(0, 2, 3)}, r"input must have at least one time step"),
        ({"input": torch.zeros(3, 2, 3, dtype=torch.int64)}, "input must be float32, float64"),
        ({"input": torch.zeros(3, 2, 5)}, r"w_ih must be \[G\*H, I\] = \[16, 5\], got \[16, 3\]"),
        ({"h_0": torch.zeros(1, 5, 4)}, r"h_0 must be \[D, B, K\] = \[1, 2, 4\], got \[1, 5, 4\]"),
        ({"h_0": torch.zeros(3, 2, 4)}, r"h_0 must be \[D, B, K\] with D = 1 or 2"),
        ({"h_0": torch.zeros(2, 4)}, r"h_0 must be \[D, B, K\]"),
        ({"h_0": torch.zeros(1, 2, 3)}, r"h_0 must be \[D, B, H\] with H = 4, got \[1, 2, 3\]"),
        (
            {"h_0": torch.zeros(1, 2, 4).double()},
            "h_0 must have the input's dtype Float, got Double",
        ),
        ({"c_0": torch.zeros(1, 2, 5)}, r"c_0 must be \[D, B, H\] = \[1, 2, 4\], got \[1, 2, 5\]"),
        ({"c_0": None}, "c_0 must be given"),
        ({"w_hh_0": torch.zeros(16, 3)}, r"w_hh must be \[G\*H, H\] = \[16, 4\], got \[16, 3\]"),
        ({"w_ih_0": torch.zeros(15, 3)}, r"w_ih must be \[G\*H, I\] with G = 4, got \[15, 3\]"),
        ({"b_ih_0": torch.zeros(3)}, r"b_ih must be \[G\*H\] = \[16\], got \[3\]"),
        ({"b_hh_0": torch.zeros(16).half()}, "b_hh must have the input's dtype Float, got Half"),
        (
            {"b_ih_0": None, "b_hh_0": None, "w_hh_0": None},
            r"params must hold w_ih, w_hh.*got 1 tensors",
        ),
        ({"save": "all"}, "save must be 'gates', 'states' or 'none', got 'all'"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_argument_errors(change, message):
    arguments = Case("lstm").arguments(torch.float32) | {"save": "none"} | change
    save = arguments.pop("save")
    input, h_0, c_0 = (arguments.pop(k) for k in ("input", "h_0", "c_0"))
    params = [p for p in arguments.values() if p is not None]
    with pytest.raises(RuntimeError, match=message):
        ops.FORWARD["lstm"](input, None, h_0, c_0, params, save)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ([2, 3, 1], "must not increase, got 3 at step 1 after 2"),
        ([3, 3, -1], "must not be negative and must not increase, got -1 at step 2 after 3"),
        ([3, 3, 1, 0], "must add up to at most 6, the rows of input, got a sum of 7"),
        ([4, 1, 0], r"h_0 must have at least the first step's 4 rows, got \[1, 3, 4\]"),
        ([3, 2, 2], "must add up to the 6 rows of input, got a sum of 7"),
        ([2, 2, 2], r"h_0 must have the first step's 2 rows, got \[1, 3, 4\]"),
        ([[3], [2], [1]], r"batch_sizes must be a 1-D int64 CPU tensor, got \[3, 1\]"),
        ([3.0, 2.0, 1.0], "batch_sizes must be a 1-D int64 CPU tensor"),
    ],
)
def test_batch_sizes_errors(sizes, message):
    input, _, h_0, _, params, _ = op_arguments(Case("gru", batch_sizes=(3, 2, 1)))
    with pytest.raises(RuntimeError, match=message):
        ops.FORWARD["gru"](input, torch.tensor(sizes), h_0, None, params, "none")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("direction", ("forward", "backward"))
@pytest.mark.parametrize(
    "sizes", (None, (3, 2, 2), (3, 1, 0)), ids=("padded", "ragged", "last step without rows")
)
def test_opcheck(cell, direction, sizes):
    c = Case(cell, T=3, B=3, D=2, batch_sizes=sizes)
    arguments = op_arguments(c)
    if direction == "forward":
        for save in ("gates", "none"):
            torch.library.opcheck(ops.FORWARD[cell], (*arguments[:-1], save))
        return
    output, h_n, c_n, gates, cells = ops.FORWARD[cell](*arguments)
    grads = (output, h_n, None if cell != "lstm" else c_n)
    for flags in ((True, True, True, False), (False, False, False, True)):
        torch.library.opcheck(
            ops.BACKWARD[cell], (*grads, *arguments[:-1], output, gates, cells, *flags)
        )


# Even H and K, which the kernels of bfloat16 take, and any I; rows of a chunk that are even and odd
# in number.
PAIRED = (
    {"T": 1, "B": 1, "I": 2, "H": 2},
    {"T": 1, "B": 70, "I": 6, "H": 34},
    {"T": 2, "B": 3, "I": 4, "H": 16},
    {"T": 7, "B": 5, "I": 10, "H": 30, "D": 2},
    {"T": 33, "B": 17, "I": 48, "H": 50},
    {"T": 90, "B": 13, "I": 64, "H": 128},  # several chunks
    {"T": 5, "B": 9, "I": 18, "H": 20, "bias": False},
    {"T": 1, "B": 1, "I": 3, "H": 4},
    {"T": 6, "B": 5, "I": 1, "H": 18, "D": 2},
    {"T": 30, "B": 7, "I": 33, "H": 64},
    {"T": 90, "B": 13, "I": 7, "H": 128, "D": 2},
    {"I": 5, "H": 36, "D": 2, "batch_sizes": (9, 9, 8, 3, 3, 1)},
    {"I": 12, "H": 36, "D": 2, "batch_sizes": (9, 9, 8, 3, 3, 1)},
)


@pytest.fixture
def in_pairs_if_any():
    """bfloat16 is multiplied in pairs wherever it can be, on processors that are slow at it too."""
    _C.deny_slow_bfloat16(True)
    yield
    _C.deny_slow_bfloat16(False)


@pytest.fixture
def in_pairs(in_pairs_if_any):
    if not _C.cpu_bfloat16():
        pytest.skip("this machine or build has no kernels for bfloat16")


@pytest.mark.parametrize(("threads", "save"), ((1, "gates"), (2, "gates"), (3, "states")))
@pytest.mark.parametrize("shape", PAIRED, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_in_pairs(in_pairs, cell, shape, threads, save):
    """Against torch, and against the level that converts, whose rounding is the finer one. (At the
    kink of relu the least rounding decides for a gradient or none.)"""
    torch.set_num_threads(threads)
    case = Case(cell, **shape)
    contexts = {"pairs": use_cpu_capability("avx512"), "converted": use_cpu_capability("avx2")}
    results = check_runs(case, torch.bfloat16, contexts, save=save)
    for name, pairs in results["pairs"].items():
        if cell == "rnn_relu" and "grad" in name:
            continue
        check_agree(pairs, results["converted"][name], name)


@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("batch_sizes", (None, (4,) * 250 + (3,) * 150))
def test_bfloat16_of_slow_gates(in_pairs, batch_sizes, D):
    """A GRU whose update gate is nearly shut adds to h less than half a unit in the last place of
    bfloat16: h is carried with more bits, so that no more is lost than by the level that converts."""
    torch.set_num_threads(2)
    case = Case("gru", T=400, B=4, I=8, H=32, D=D, batch_sizes=batch_sizes)
    given = case.arguments(torch.bfloat16)
    for d in range(D):
        given[f"b_ih_{d}"][case.H : 2 * case.H] += 6
    exact = case.call(reference, *(t.double() for t in given.values()))
    found = []
    for level in ("avx512", "avx2"):  # in pairs; converted
        with use_cpu_capability(level):
            found.append(case.call(functional, *given.values()))
    for pairs, converted, expected in zip(*found, exact, strict=True):
        check_no_worse(pairs, expected, converted)


@pytest.mark.parametrize("P", (4, 5))
def test_bfloat16_projected(in_pairs_if_any, P):
    torch.set_num_threads(2)
    for shape in PAIRED[2:4]:
        check_levels(Case("lstm", P=P, **shape), torch.bfloat16)


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_at_odd_addresses(cell):
    """Pairs are read at addresses that fit them, wherever a tensor begins."""
    case = Case(cell, T=4, B=3, I=8, H=16)
    given = case.arguments(torch.bfloat16)
    shifted = {}
    for name, tensor in given.items():
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        shifted[name] = memory[1:].view(tensor.shape).copy_(tensor)
    expected = case.call(functional, *given.values())
    for a, b in zip(case.call(functional, *shifted.values()), expected, strict=True):
        assert torch.equal(a, b)
