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
    """In this process and from a file. The layers are seqkern's operators in the graph."""
    module = getattr(seqkern, kind)(3, 4, **kwargs).eval()
    program = exported(module, with_lengths, strict)
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    nodes = [node for m in graphs for node in m.graph.nodes]
    ops = [n for n in nodes if str(n.target).startswith("seqkern") and "_forward" in str(n.target)]
    assert len(ops) == module.num_layers
    check_same(program.module(), module, with_lengths)
    torch.export.save(program, tmp_path / "layer.pt2")
    check_same(torch.export.load(tmp_path / "layer.pt2").module(), module, with_lengths)


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
