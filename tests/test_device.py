"""The kernels of each device that runs here: the CPU's, and CUDA's where build and machine have
them.

Results are held to the tolerance rule on the CPU, with torch's CPU results for a bar: cuDNN's are
in TF32 by default. tests/cuda_host runs the CUDA kernels without a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import itertools

import pytest
import torch
from layers import CELLS, Case, check_runs, count_kernels, gradients
from tolerances import check
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqkern
from seqkern import _C, functional, ops

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Every cell, and the projected LSTM beside them.
KINDS = (*CELLS, "lstm_projected")
LAYERS = ("LSTM", "GRU", "RNN")


def case(kind: str, **sizes) -> Case:
    cell = kind.removesuffix("_projected")
    return Case(cell, P=sizes["H"] // 2 if cell != kind else 0, **sizes)


def on(device, c: Case, dtype) -> dict[str, torch.Tensor]:
    return {name: t.to(device) for name, t in c.arguments(dtype).items()}


def ours(c: Case, arguments: dict, **options) -> dict[str, torch.Tensor]:
    return gradients(lambda *t: c.call(functional, *t, **options), arguments)


def check_device(device: str, c: Case, dtype: torch.dtype, **options) -> None:
    check_runs(c, dtype, {device: contextlib.nullcontext()}, device, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_small_layers(kernel_device, kind):
    """Both directions, padded and ragged, every dtype: make cuda-sanitize runs this too."""
    for dtype in DTYPES:
        check_device(kernel_device, case(kind, T=3, B=5, I=3, H=8, D=2), dtype)
        check_device(kernel_device, case(kind, I=2, H=5, D=2, batch_sizes=(5, 4, 4, 1)), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_layers(kernel_device, kind):
    for dtype, (D, bias) in itertools.product(DTYPES, ((1, True), (2, False))):
        for T, B, I, H in ((1, 1, 1, 2), (4, 3, 5, 7), (9, 6, 16, 33), (3, 17, 8, 64)):
            c = case(kind, T=T, B=B, I=I, H=H, D=D, bias=bias)
            check_device(kernel_device, c, dtype)
        for sizes in ((3, 3, 2, 1, 1), (17, 9, 9, 1)):
            check_device(kernel_device, case(kind, I=5, H=17, D=D, batch_sizes=sizes), dtype)


@pytest.mark.parametrize("cell", CELLS)
def test_saved_states(kernel_device, cell):
    for dtype in DTYPES:
        for sizes in (None, (5, 5, 3, 1)):
            c = Case(cell, T=7, B=5, I=6, H=33, D=2, batch_sizes=sizes, scale=0.5)
            check_device(kernel_device, c, dtype, save="states")


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kernel_device, kind):
    for sizes in (None, (3, 2, 2)):
        c = case(kind, T=3, B=2, I=2, H=4, D=2, batch_sizes=sizes)
        arguments = [t.requires_grad_() for t in on(kernel_device, c, torch.float64).values()]
        assert torch.autograd.gradcheck(lambda *t, c=c: c.call(functional, *t), arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_one_kernel_each_way(kernel_device, cell):
    """The operators ran, not the readable loops; results are where the arguments were."""
    c = Case(cell, T=3, B=2, H=5)
    with count_kernels() as calls:
        results = ours(c, on(kernel_device, c, torch.float32))
    assert calls == {f"{cell}_forward": 1, f"{cell}_backward": 1}
    assert {r.device.type for r in results.values()} == {kernel_device}


@pytest.mark.parametrize("kind", KINDS)
def test_strided_arguments(kernel_device, kind):
    """Arguments and gradients of any strides, as their contiguous copies."""
    c = case(kind, T=3, B=4, I=3, H=6, D=2)

    def strided(t: torch.Tensor) -> torch.Tensor:
        return torch.stack((t, t), -1)[..., 0]

    for dtype in (torch.float32, torch.float16):
        found = []
        for change in (torch.clone, strided):
            arguments = {name: change(t) for name, t in on(kernel_device, c, dtype).items()}
            x, h, *params = arguments.values()
            assert h.is_contiguous() == (change is torch.clone)
            c_0 = params.pop(0) if c.cell == "lstm" else None
            tensors = (x, None, h, c_0, params)
            results = ops.FORWARD[c.cell](*tensors, "gates")
            ones = [change(torch.ones_like(t)) if t.numel() else None for t in results[:3]]
            kept = [change(t) if t.numel() else t for t in (results[0], *results[3:])]
            needs = (True, True, True, False)
            grads = ops.BACKWARD[c.cell](*ones, *tensors, *kept, *needs)
            found.append([*results, *grads[:3], *grads[3]])
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch(kernel_device, kind):
    """No rows: empty results, and parameters whose gradients are zeros."""
    for dtype, save in itertools.product((torch.float32, torch.bfloat16), ("gates", "states")):
        c = case(kind, T=3, B=0, I=3, H=6, D=2)
        results = ours(c, on(kernel_device, c, dtype), save=save)
        assert results["output"].shape == (3, 0, 2 * (c.P or c.H))
        for name, value in results.items():
            if name.startswith(("grad_w", "grad_b")):
                assert value.numel() and not value.any(), name
            else:
                assert not value.numel(), name


@pytest.mark.parametrize("cell", CELLS)
def test_rows_left_over(kernel_device, cell):
    """batch_sizes that end in 0: the output's other rows are zero, states of no step stay."""
    plain = Case(cell, I=3, H=6, D=2, batch_sizes=(3, 2))
    more = Case(cell, I=3, H=6, D=2, batch_sizes=(4, 3))
    arguments = on(kernel_device, more, torch.float64)
    fewer = {
        name: t[:5] if name == "input" else t[:, :3] if name in ("h_0", "c_0") else t
        for name, t in arguments.items()
    }
    more.batch_sizes = (3, 2, 0)
    results, expected = ours(more, arguments), ours(plain, fewer)
    assert torch.equal(results["output"][:5], expected["output"])
    assert not results["output"][5:].any()
    for name in ("h", "c") if cell == "lstm" else ("h",):
        assert torch.equal(results[f"{name}_n"][:, :3], expected[f"{name}_n"])
        assert torch.equal(results[f"{name}_n"][:, 3], arguments[f"{name}_0"][:, 3])


@pytest.mark.parametrize("cell", CELLS)
def test_bad_row_stays_alone(kernel_device, cell):
    c = Case(cell, T=4, B=9, I=5, H=19, D=2)
    arguments = on(kernel_device, c, torch.bfloat16)
    clean = ours(c, arguments)
    arguments["input"][1, 6] = float("nan")
    dirty = ours(c, arguments)
    others = [row for row in range(9) if row != 6]
    for name in ("output", "h_n", "grad_input", "grad_h_0"):
        assert torch.equal(clean[name][:, others], dirty[name][:, others]), name
    assert dirty["output"][1:, 6, :19].isnan().all()


@pytest.mark.parametrize("cell", CELLS)
def test_step(kernel_device, cell):
    """The operator for one step is a layer of one step, and knows a lone bias when it sees one."""
    for dtype in DTYPES:
        for B in (0, 1, 3, 20):
            c = Case(cell, T=1, B=B, I=5, H=17)
            given = on(kernel_device, c, dtype)
            exact = c.call(seqkern.reference, *(t.double().cpu() for t in given.values()))[1:]
            x, h, *rest = given.values()
            c_0 = [rest.pop(0)[0]] if cell == "lstm" else []
            stepped = ops.STEP[cell](x[0], h[0], *c_0, *rest)
            stepped = stepped if cell == "lstm" else (stepped,)
            for a, e in zip(stepped, exact, strict=False):
                check(a.cpu(), e[0], e[0].to(dtype))
    with pytest.raises(RuntimeError, match="both biases or none, got b_ih alone"):
        ops.STEP[cell](x[0], h[0], *c_0, *rest[:-1], None)


@pytest.mark.parametrize("name", LAYERS)
def test_stream(kernel_device, name):
    for dtype in (torch.float32, torch.float64):
        module = getattr(seqkern, name)(5, 17, num_layers=2, dtype=torch.float64)
        input = torch.randn(6, 3, 5, dtype=torch.float64)
        exact, exact_state = module(input)
        torchs, _ = seqkern.to_torch(copy.deepcopy(module)).to(dtype)(input.to(dtype))
        stream = seqkern.Stream(copy.deepcopy(module).to(kernel_device, dtype))
        given = input.to(kernel_device, dtype)
        outputs = torch.stack([stream.step(x).clone() for x in given])
        assert outputs.device.type == kernel_device
        check(outputs.cpu(), exact.detach(), torchs.detach())
        state = stream.state[0] if name == "LSTM" else stream.state
        exact_h = exact_state[0] if name == "LSTM" else exact_state
        check(state.cpu(), exact_h.detach(), exact_h.detach().to(dtype))
        # Back to what was, and one row anew.
        stream.reset(torch.tensor([True, False, False], device=kernel_device))
        kept = stream.state
        first = stream.step(given[0]).clone()
        stream.state = kept
        assert torch.equal(stream.step(given[0]), first)
        torch.testing.assert_close(first[0], outputs[0, 0])


@pytest.mark.parametrize("name", LAYERS)
def test_modules(kernel_device, name):
    """Layers, both directions, packed and with lengths, against torch.nn in float64 on the CPU."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    torchs = getattr(nn, name)(5, 7, **options)
    module = getattr(seqkern, name)(5, 7, **options)
    module.load_state_dict(torchs.state_dict())
    module.to(kernel_device)
    input, lengths = torch.randn(6, 4, 5, dtype=torch.float64), torch.tensor([2, 6, 1, 6])
    given = input.to(kernel_device)

    def close(a, b):
        torch.testing.assert_close(a.cpu(), b)

    for arguments in (
        (input, given),
        (
            pack_padded_sequence(input, lengths, enforce_sorted=False),
            pack_padded_sequence(given, lengths, enforce_sorted=False),
        ),
    ):
        for m in (torchs, module):
            m.zero_grad()
        expected, result = torchs(arguments[0])[0], module(arguments[1])[0]
        if not isinstance(expected, torch.Tensor):
            expected, result = expected.data, result.data
        close(result, expected)
        for output in (expected, result):
            output.square().sum().backward()
        for p, q in zip(module.parameters(), torchs.parameters(), strict=True):
            close(p.grad, q.grad)
    packed, _ = module(pack_padded_sequence(given, lengths, enforce_sorted=False))
    padded, _ = nn.utils.rnn.pad_packed_sequence(packed)
    for each in (lengths, lengths.to(kernel_device)):
        torch.testing.assert_close(module(given, lengths=each)[0], padded)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast(kernel_device, name):
    """Computes as the same module in the autocast dtype does; gradients are in float32."""
    module = getattr(seqkern, name)(5, 24, bidirectional=True).to(kernel_device)
    input = torch.randn(6, 3, 5, device=kernel_device)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(kernel_device, dtype=dtype):
            output = module(input)[0]
        plain = copy.deepcopy(module).to(dtype)(input.to(dtype))[0]
        assert torch.equal(output.to(dtype), plain)
        output.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in module.parameters())
        module.zero_grad()


@pytest.mark.parametrize("name", LAYERS)
def test_compiled(kernel_device, name):
    module = getattr(seqkern, name)(5, 7, num_layers=2).to(kernel_device)
    input = torch.randn(6, 3, 5, device=kernel_device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(input)[0], module(input)[0])


# A GPU alone has what follows.


@contextlib.contextmanager
def forced(tier: str, chunk_rows: int = 0):
    _C.force_cuda_plan(tier, chunk_rows)
    try:
        yield
    finally:
        _C.force_cuda_plan()


TIERS = ("stepwise", "block", "grid", "mma")


def cases_of(tier: str):
    """Cases and dtypes that a tier takes; the last block of a row or of units is not full."""
    if tier == "mma" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("tensor cores of this GPU are older than the tier")
    for kind in KINDS if tier == "stepwise" else CELLS:
        for dtype in DTYPES[2:] if tier == "mma" else DTYPES:
            for sizes in (None, (9, 8, 4, 4)):
                yield case(kind, T=5, B=9, I=4, H=24, D=2, batch_sizes=sizes), dtype


@pytest.mark.parametrize("tier", TIERS)
def test_small_tiers(cuda, tier):
    """Every tier, in chunks too: make cuda-sanitize runs this."""
    for c, dtype in cases_of(tier):
        check_runs(c, dtype, {tier: forced(tier), "chunks": forced(tier, 11)}, cuda)


@pytest.mark.parametrize("tier", TIERS)
def test_same_bits(cuda, tier):
    for c, dtype in cases_of(tier):
        with forced(tier):
            first = ours(c, on(cuda, c, dtype))
            for _ in range(5):
                for name, value in ours(c, on(cuda, c, dtype)).items():
                    assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("cell", CELLS)
def test_large_layers(cuda, cell):
    """What the planner chooses on this GPU: one block, many, tensor cores, a product for each step."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for T, B, H in ((20, 4, 40), (5, 16, 128), (5, 33, 300), (4, 16, 768), (3, 300, 512)):
            check_device(cuda, Case(cell, T=T, B=B, I=32, H=H, scale=0.5), dtype)


@pytest.mark.parametrize("cell", CELLS)
def test_side_stream(cuda, cell):
    """Kernels wait for what the current stream has to do before them."""
    c = Case(cell, T=4, B=3, I=5, H=32, D=2)
    arguments = on(cuda, c, torch.float32)
    expected = ours(c, arguments)
    late = {name: torch.zeros_like(t) for name, t in arguments.items()}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        for name, t in late.items():
            t.copy_(arguments[name])
        results = ours(c, late)
    side.synchronize()
    for name, value in results.items():
        torch.testing.assert_close(value, expected[name], msg=name)


def captured(function):
    """A CUDA graph of the function, and the tensors that its replays write."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


@pytest.mark.parametrize("cell", CELLS)
def test_cuda_graph(cuda, cell):
    """Forward and backward of a padded layer, replayed on other numbers."""
    for dtype in (torch.float32, torch.bfloat16):
        c = Case(cell, T=5, B=4, I=6, H=32, D=2)
        leaves = [t.requires_grad_() for t in on(cuda, c, dtype).values()]

        def train(c=c, leaves=leaves):
            results = [r for r in c.call(functional, *leaves) if r.numel()]
            loss = sum(r.float().square().sum() for r in results)
            return [r.detach() for r in results] + list(torch.autograd.grad(loss, leaves))

        graph, results = captured(train)
        with torch.no_grad():
            leaves[0].copy_(torch.randn_like(leaves[0]))
        graph.replay()
        for replayed, eager in zip(results, train(), strict=True):
            torch.testing.assert_close(replayed, eager)


@pytest.mark.parametrize("name", LAYERS)
def test_cuda_graph_of_a_stream(cuda, name):
    """Each replay is a step: it begins with the state that the one before has left."""
    module = getattr(seqkern, name)(5, 32, num_layers=2).to(cuda)
    input = torch.randn(4, 3, 5, device=cuda)
    stream, x = seqkern.Stream(module), input[0].clone()
    stream.step(x)
    graph, y = captured(lambda: stream.step(x))
    stream.reset(torch.ones(3, dtype=torch.bool, device=cuda))
    outputs = []
    for step in input:
        x.copy_(step)
        graph.replay()
        outputs.append(y.clone())
    torch.testing.assert_close(torch.stack(outputs), module(input)[0].detach())


def test_arguments_on_two_devices(cuda):
    c = Case("gru")
    arguments = on(cuda, c, torch.float32)
    arguments["w_hh_0"] = arguments["w_hh_0"].cpu()
    with pytest.raises(RuntimeError, match="w_hh must be on the input's device cuda:0, got cpu"):
        c.call(functional, *arguments.values())


def test_a_device_that_is_not_the_current_one(cuda):
    if torch.cuda.device_count() == 1:
        pytest.skip("one CUDA device only")
    for cell in CELLS:
        check_device("cuda:1", Case(cell, T=3, B=2, I=3, H=24, D=2), torch.bfloat16)
        check_device("cuda:1", Case(cell, I=3, H=24, batch_sizes=(3, 2)), torch.float32)


def test_opcheck(cuda):
    x, h, c, *params = on(cuda, Case("lstm", T=1, B=2), torch.float32).values()
    checks = [(ops.FORWARD, (x, None, h, c, params, "gates"))]
    checks.append((ops.STEP, (x[0], h[0], c[0], *params)))
    w_ih, w_hh, vector_bytes = ops.PACK["lstm"](*params[:2])
    assert vector_bytes == 0
    stream = (x[0], h[0], c[0], w_ih, w_hh, *params[2:], torch.zeros_like(h[0]), vector_bytes)
    checks.append((ops.STREAM_STEP, stream))
    for table, arguments in checks:
        torch.library.opcheck(table["lstm"], arguments)
