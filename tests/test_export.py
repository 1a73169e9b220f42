"""torch.export and AOTInductor: the exported layer gives the same output for other sizes and lengths."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

import seqkern

LAYERS = [
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {"num_layers": 2}),
]
T, B = Dim("T", min=2, max=1000), Dim("B", min=2, max=1000)
FIRST = (torch.randn(5, 4, 3), torch.tensor([3, 0, 5, 2]))
OTHER = (torch.randn(7, 3, 3), torch.tensor([7, 0, 2]))


def exported(module, with_lengths, strict=False):
    x, lengths = FIRST
    kwargs = {"lengths": lengths} if with_lengths else {}
    shapes = {"input": {0: T, 1: B}, "lengths": {0: B}} if with_lengths else {"input": {0: T, 1: B}}
    return torch.export.export(module, (x,), kwargs, dynamic_shapes=shapes, strict=strict)


def check_same(function, module, with_lengths):
    for x, lengths in (FIRST, OTHER):
        kwargs = {"lengths": lengths} if with_lengths else {}
        torch.testing.assert_close(function(x, **kwargs), module(x, **kwargs))


@pytest.mark.parametrize("strict", (False, True), ids=("non-strict", "strict"))
@pytest.mark.parametrize("with_lengths", (False, True), ids=("padded", "lengths"))
@pytest.mark.parametrize("kind, kwargs", LAYERS, ids=[kind for kind, _ in LAYERS])
def test_export(kind, kwargs, with_lengths, strict, tmp_path):
    """In this process and from a file. The layers are seqkern's operators in the graph, for lengths too."""
    module = getattr(seqkern, kind)(3, 4, **kwargs).eval()
    program = exported(module, with_lengths, strict)
    assert operators(program) == [OPERATORS[kind]] * module.num_layers
    check_same(program.module(), module, with_lengths)
    torch.export.save(program, tmp_path / "layer.pt2")
    check_same(torch.export.load(tmp_path / "layer.pt2").module(), module, with_lengths)
    check_same(torch.export.unflatten(program), module, with_lengths)


OPERATORS = {"LSTM": "seqkern.lstm", "GRU": "seqkern.gru", "RNN": "seqkern.rnn_tanh"}


def operators(program) -> list[str]:
    """seqkern's, in the graph itself: none may be hidden in a graph within it."""
    targets = [str(node.target).removesuffix(".default") for node in program.graph.nodes]
    return [target for target in targets if target.startswith("seqkern")]


@pytest.mark.parametrize("strict", (False, True), ids=("non-strict", "strict"))
@pytest.mark.parametrize("with_lengths", (False, True), ids=("padded", "lengths"))
@pytest.mark.parametrize("kind, kwargs", LAYERS, ids=[kind for kind, _ in LAYERS])
def test_gradients(kind, kwargs, with_lengths, strict):
    """An exported program can be trained, as it is and compiled, and its gradients be differentiated."""
    module = getattr(seqkern, kind)(3, 4, dtype=torch.float64, **kwargs)
    x = FIRST[0].double()
    lengths = {"lengths": FIRST[1]} if with_lengths else {}
    program = torch.export.export(module, (x,), lengths, strict=strict).module()

    def gradients(module, function, create_graph=False):
        input = x.clone().requires_grad_()
        output = function(input, **lengths)[0]
        wanted = (input, *module.parameters())
        return torch.autograd.grad(output.square().sum(), wanted, create_graph=create_graph)

    expected = gradients(module, module)
    torch.testing.assert_close(gradients(program, program), expected)
    compiled = torch.compile(program, backend="aot_eager")
    torch.testing.assert_close(gradients(program, compiled), expected)
    first = gradients(program, program, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), list(program.parameters()))
    first = gradients(module, module, create_graph=True)[0]
    torch.testing.assert_close(second, torch.autograd.grad(first.sum(), list(module.parameters())))


@pytest.mark.parametrize("kind", ("LSTMCell", "GRUCell", "RNNCell"))
def test_cells(kind):
    cell, x = getattr(seqkern, kind)(3, 4), torch.randn(5, 3)
    program = torch.export.export(cell, (x,))
    assert len(operators(program)) == 1
    torch.testing.assert_close(program.module()(x), cell(x))
    again = torch.export.export(program.module(), (x,)).run_decompositions()
    assert [op.removesuffix("_forward") for op in operators(again)] == operators(program)
    torch.testing.assert_close(again.module()(x), cell(x))


def test_exported_program_under_autocast():
    lstm, x = seqkern.LSTM(3, 4), FIRST[0]
    program = torch.export.export(lstm, (x,)).module()
    with torch.autocast("cpu", torch.bfloat16):
        expected = lstm(x)
        torch.testing.assert_close(program(x), expected, rtol=0, atol=0)
        inside = torch.export.export(lstm, (x,)).module()
    torch.testing.assert_close(inside(x), expected, rtol=0, atol=0)


def test_exported_lengths_out_of_range():
    run = exported(seqkern.GRU(3, 4), True).module()
    with pytest.raises(RuntimeError, match="lengths must lie between 0 and T"):
        run(OTHER[0], lengths=torch.tensor([8, 0, 2]))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own archive
def test_aotinductor(tmp_path):
    """Packaged, loaded back and run, errors included."""
    module = seqkern.LSTM(3, 4, bidirectional=True).eval()
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(module, with_lengths=True), package_path=str(tmp_path / "layer.pt2")
        )
        run = torch._inductor.aoti_load_package(path)
        check_same(run, module, with_lengths=True)
        # Which of the two checks runs first is not ours to say.
        with pytest.raises(RuntimeError, match="lengths must lie between|batch_sizes must add up"):
            run(OTHER[0], lengths=torch.tensor([8, 0, 2]))
