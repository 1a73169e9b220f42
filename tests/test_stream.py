"""seqkern.Stream: one step at a time equals the whole sequence."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tolerances import check

import seqkern
from seqkern import ops

LAYERS = ("LSTM", "GRU", "RNN")


def tensors(state):
    return state if isinstance(state, tuple) else (state,)


def run(stream, input):
    return torch.stack([stream.step(x).clone() for x in input])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("library", (torch.nn, seqkern), ids=("torch", "seqkern"))
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_sequence(capability, name, library, dtype):
    for B, H, layers, bias in (
        (1, 7, 1, True),
        (3, 17, 2, False),
        (13, 40, 3, True),
        (64, 33, 1, True),
    ):
        module = getattr(library, name)(
            5, H, num_layers=layers, bias=bias, dropout=0.5 * (layers > 1)
        ).double()
        module.eval()
        input = torch.randn(6, B, 5, dtype=torch.float64)
        with torch.no_grad():
            exact, exact_state = module(input)
            torchs, torch_state = seqkern.to_torch(module).to(dtype)(input.to(dtype))
        stream = seqkern.Stream(copy.deepcopy(module).to(dtype))
        check(run(stream, input.to(dtype)), exact, torchs)
        states = (tensors(s) for s in (stream.state, exact_state, torch_state))
        for own, exact, torchs in zip(*states, strict=True):
            check(own, exact, torchs)


@pytest.mark.parametrize("relu", (False, True), ids=("tanh", "relu"))
def test_nonlinearity(relu):
    kind = "relu" if relu else "tanh"
    input = torch.randn(4, 2, 5)
    for module in (seqkern.RNN(5, 6, nonlinearity=kind), torch.nn.RNN(5, 6, nonlinearity=kind)):
        torch.testing.assert_close(run(seqkern.Stream(module), input), module(input)[0].detach())


@pytest.mark.parametrize("name", ("LSTMCell", "GRUCell", "RNNCell"))
def test_cells(name):
    cell, input = getattr(seqkern, name)(5, 7), torch.randn(4, 3, 5)
    stream, state, expected = seqkern.Stream(cell), None, []
    for x in input:
        state = cell(x, state)
        expected.append(tensors(state)[0])
    torch.testing.assert_close(run(stream, input), torch.stack(expected).detach())
    for own, given in zip(tensors(stream.state), tensors(state), strict=True):
        torch.testing.assert_close(own, given.detach())
    stream.state = state
    torch.testing.assert_close(stream.step(input[0]), tensors(cell(input[0], state))[0].detach())


@pytest.mark.parametrize("name", LAYERS)
def test_unbatched(name):
    module, input = getattr(seqkern, name)(5, 7, num_layers=2), torch.randn(4, 5)
    stream = seqkern.Stream(module)
    expected, state = module(input)
    torch.testing.assert_close(run(stream, input), expected.detach())
    for own, given in zip(tensors(stream.state), tensors(state), strict=True):
        torch.testing.assert_close(own, given.detach())


@pytest.mark.parametrize("name", LAYERS)
def test_state_and_reset(name):
    module, input = getattr(seqkern, name)(5, 7, num_layers=2), torch.randn(6, 3, 5)
    stream = seqkern.Stream(module)
    assert stream.state is None
    stream.reset(torch.tensor([True]))  # nothing to do yet
    whole = run(stream, input)
    stream.reset()
    run(stream, input[:2])
    kept = stream.state
    run(stream, input[2:])
    stream.state = kept  # back to step 2
    torch.testing.assert_close(run(stream, input[2:]), whole[2:])
    stream.reset()
    run(stream, input[:2])
    stream.reset(torch.tensor([False, True, False]))
    mixed = run(stream, input[2:])
    torch.testing.assert_close(mixed[:, [0, 2]], whole[2:, [0, 2]])
    anew, _ = module(input[2:])
    torch.testing.assert_close(mixed[:, 1], anew[:, 1].detach())
    stream.reset()
    assert stream.step(torch.randn(8, 5)).shape == (8, 7)  # another batch size


def test_the_caller_may_change_what_it_gets():
    stream, x = seqkern.Stream(seqkern.GRU(5, 7)), torch.randn(2, 5)
    first = stream.step(x)
    before = stream.state.clone()
    first.fill_(9.0)
    assert torch.equal(stream.state, before)
    stream.state.fill_(9.0)
    assert torch.equal(stream.state, before)


@pytest.mark.skipif(
    hasattr(torch.ops.seqkern_cuda_host, "tiers"),
    reason="a CUDA step takes its scratch from torch's allocator (make cuda-host)",
)
@pytest.mark.parametrize("name", LAYERS)
def test_allocates_nothing_after_the_first_step(name):
    stream, x = seqkern.Stream(getattr(seqkern, name)(5, 7, num_layers=2)), torch.randn(3, 5)
    stream.step(x)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        stream.step(x)
    used = [e for e in profile.events() if e.name == "[memory]" or e.cpu_memory_usage != 0]
    assert not used
    assert {e.key for e in profile.key_averages()} == {f"seqkern::{ops_name(name)}_stream_step"}


def ops_name(name):
    return {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[name]


def test_weights_are_taken_once_and_again_by_pack():
    module, x = seqkern.GRU(5, 7), torch.randn(2, 5)
    stream = seqkern.Stream(module)
    before = stream.step(x).clone()
    with torch.no_grad():
        module.weight_ih_l0.mul_(2)
        module.bias_hh_l0.add_(1)
    stream.reset()
    assert torch.equal(stream.step(x), before)
    stream.reset()
    stream.pack()
    torch.testing.assert_close(stream.step(x), module(x[None])[0][0].detach())


def test_pack_keeps_the_state():
    module, input = seqkern.LSTM(5, 7), torch.randn(4, 2, 5)
    stream = seqkern.Stream(module)
    run(stream, input[:2])
    stream.pack()
    torch.testing.assert_close(run(stream, input[2:]), module(input)[0][2:].detach())


def test_copies():
    module, input = seqkern.LSTM(5, 7, num_layers=2), torch.randn(4, 2, 5)
    stream = seqkern.Stream(module)
    run(stream, input[:2])
    others = copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))
    for other in (stream, *others):
        torch.testing.assert_close(run(other, input[2:]), module(input)[0][2:].detach())


def test_another_level_says_what_to_do():
    levels = seqkern.cpu_capabilities()
    if len(levels) == 1:
        pytest.skip("one level only")
    stream = seqkern.Stream(seqkern.GRU(5, 7))
    x = torch.randn(2, 5)
    stream.step(x)
    other = next(level for level in levels if level != seqkern.cpu_capability())
    with seqkern.use_cpu_capability(other):
        with pytest.raises(RuntimeError, match="pack them again"):
            stream.step(x)
        stream.pack()
        stream.step(x)


@pytest.mark.parametrize("threads", (1, 2, 3))
def test_threads(threads):
    module, input = seqkern.LSTM(200, 300), torch.randn(3, 4, 200)
    torch.set_num_threads(threads)
    torch.testing.assert_close(run(seqkern.Stream(module), input), module(input)[0].detach())


def test_inference_mode_and_grad_mode_mix():
    module, input = seqkern.GRU(5, 7), torch.randn(4, 2, 5, requires_grad=True)
    stream = seqkern.Stream(module)
    with torch.inference_mode():
        stream.step(input[0])
    run(stream, input[1:])
    torch.testing.assert_close(stream.state, module(input)[1].detach())
    assert not stream.step(input[0]).requires_grad


def test_refuses():
    for bad, error, message in (
        (torch.nn.Linear(2, 3), TypeError, "takes an LSTM, GRU or RNN, or a cell, got Linear"),
        (seqkern.GRU(2, 3, bidirectional=True), ValueError, "takes one direction"),
        (seqkern.LSTM(2, 3, proj_size=1), ValueError, "takes no projection, got proj_size=1"),
        (seqkern.GRU(2, 3).bfloat16(), ValueError, "float32 or float64 .* got torch.bfloat16"),
        (seqkern.GRU(2, 3, device="meta"), ValueError, "on the CPU.*, got .* on meta"),
    ):
        with pytest.raises(error, match=message):
            seqkern.Stream(bad)
    stream = seqkern.Stream(seqkern.LSTM(2, 3))
    for shape in ((4, 3), (1, 4, 2), ()):
        with pytest.raises(ValueError, match=r"input must be \[B, 2\] or \[2\], got"):
            stream.step(torch.randn(shape))
    stream.step(torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"input must be \[4, 2\] as in the steps before"):
        stream.step(torch.randn(5, 2))
    with pytest.raises(RuntimeError, match="input must be a contiguous .* Double"):
        stream.step(torch.randn(4, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor of shape \[4\]"):
        stream.reset(torch.ones(4))
    with pytest.raises(ValueError, match=r"state must be \(h, c\), got Tensor"):
        stream.state = torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match=r"state must be \[1, 4, 3\], got \[1, 4, 2\]"):
        stream.state = (torch.zeros(1, 4, 3), torch.zeros(1, 4, 2))
    assert stream.step(torch.randn(4, 2)).shape == (4, 3)  # errors lose nothing


@pytest.mark.parametrize("cell", ops.CELLS)
def test_opcheck(cell):
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    w_ih, w_hh = torch.randn(gates * 3, 2), torch.randn(gates * 3, 3)
    w_ih, w_hh, vector_bytes = ops.PACK[cell](w_ih, w_hh)
    h, output = torch.zeros(2, 3), torch.zeros(2, 3)
    c = torch.zeros(2, 3) if cell == "lstm" else None
    arguments = (torch.randn(2, 2), h, c, w_ih, w_hh, None, None, output, vector_bytes)
    torch.library.opcheck(ops.STREAM_STEP[cell], arguments)


def test_empty_batch():
    stream = seqkern.Stream(seqkern.GRU(2, 3))
    assert stream.step(torch.randn(0, 2)).shape == (0, 3)
