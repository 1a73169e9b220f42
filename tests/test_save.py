"""``save="states"``: the same gradients from less memory."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from layers import CELLS, Case, gradients
from tolerances import check_all

import seqkern
from seqkern import functional


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("sizes", (None, (5, 5, 3, 1)), ids=("padded", "ragged"))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell", CELLS)
def test_results_and_gradients(capability, cell, D, sizes, dtype):
    # 600 rows are more than a chunk.
    for T, B, H in ((1, 3, 17), (7, 5, 33), (300, 2, 8)) if sizes is None else ((4, 5, 19),):
        # Small weights: over many steps relu would overflow.
        case = Case(cell, T=T, B=B, I=6, H=H, D=D, batch_sizes=sizes, scale=0.3)
        arguments = case.arguments(dtype)
        exact = gradients(
            lambda *t, c=case: c.call(functional, *t), {k: v.double() for k, v in arguments.items()}
        )
        gates = gradients(lambda *t, c=case: c.call(functional, *t), arguments)
        states = gradients(lambda *t, c=case: c.call(functional, *t, save="states"), arguments)
        check_all(states, exact, gates)


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize(
    "sizes", (None, (60,) * 8 + (40,) * 4 + (7,) * 3), ids=("padded", "ragged")
)
def test_many_units_in_smaller_chunks(sizes, threads):
    """LSTMs that are wider than deep: chunks of 320 rows where forward and the other way have 512."""
    torch.set_num_threads(threads)
    case = Case("lstm", T=15, B=44, I=5, H=272, D=1, batch_sizes=sizes, scale=0.1)
    arguments = case.arguments(torch.float32)
    exact = gradients(
        lambda *t: case.call(functional, *t), {k: v.double() for k, v in arguments.items()}
    )
    gates = gradients(lambda *t: case.call(functional, *t), arguments)
    states = gradients(lambda *t: case.call(functional, *t, save="states"), arguments)
    check_all(states, exact, gates)


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell):
    case = Case(cell, T=4, B=2, D=2)
    arguments = [t.requires_grad_() for t in case.arguments().values()]
    assert torch.autograd.gradcheck(lambda *t: case.call(functional, *t, save="states"), arguments)
    assert torch.autograd.gradgradcheck(
        lambda *t: case.call(functional, *t, save="states"), arguments
    )


def held(module, input):
    """Bytes that autograd holds between forward and backward, but for input and parameters."""
    own = {t.untyped_storage().data_ptr() for t in (input, *module.parameters())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = module(input)
    return sum(storages.values()), result


def test_memory():
    T, B, H = 60, 8, 64
    input = torch.randn(T, B, H)
    unit = T * B * H * 4
    torchs, _ = held(torch.nn.LSTM(H, H), input)
    gates, _ = held(seqkern.LSTM(H, H), input)
    states, _ = held(seqkern.LSTM(H, H, save="states"), input)
    assert 6 * unit <= gates <= 0.5 * torchs
    assert 2 * unit <= states <= 0.25 * torchs
    assert held(seqkern.GRU(H, H, save="states"), input)[0] < 1.2 * unit


@pytest.mark.parametrize("name", ("LSTM", "GRU", "RNN"))
def test_modules(name):
    torch.manual_seed(1)
    module = getattr(seqkern, name)(5, 7, num_layers=2, bidirectional=True, save="states")
    plain = getattr(seqkern, name)(5, 7, num_layers=2, bidirectional=True)
    plain.load_state_dict(module.state_dict())
    assert repr(module) == repr(plain).replace(")", ", save='states')")
    others = (copy.deepcopy(module), pickle.loads(pickle.dumps(module)))
    back = seqkern.convert(seqkern.to_torch(module))
    assert type(back) is type(module)
    input = torch.randn(6, 3, 5)
    plain(input)[0].square().sum().backward()
    for other in (module, *others, back):
        assert other.save == "states"
        other.zero_grad()
        memory, (output, _) = held(other, input)
        assert memory < held(plain, input)[0] or name == "RNN"
        output.square().sum().backward()
        for p, q in zip(other.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(input)[0], plain(input)[0])
    with torch.autocast("cpu"):
        assert held(module, input)[0] <= held(plain, input)[0]


def test_only_these_two():
    with pytest.raises(ValueError, match="save must be 'gates' or 'states', got 'all'"):
        seqkern.GRU(2, 3, save="all")
