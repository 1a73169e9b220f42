"""PyTorch's own table of module inputs (torch.testing._internal): seqkern against torch.nn."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

import seqkern

common_modules = pytest.importorskip(
    "torch.testing._internal.common_modules", reason="needs PyTorch's test utilities (expecttest)"
)

INFOS = {
    info.name: info
    for info in common_modules.module_db
    if issubclass(info.module_cls, (nn.RNNBase, nn.RNNCellBase))
}


def test_the_table_has_every_class():
    assert {info.module_cls for info in INFOS.values()} == {
        getattr(nn, name) for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
    }


def run(module, args, kwargs):
    """Result, and gradients by every floating input and parameter."""
    args, kwargs = tree_map(
        lambda x: x.detach().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x,
        (args, kwargs),
    )
    results = [t for t in tree_flatten(module(*args, **kwargs))[0] if t.is_floating_point()]
    given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    sources = [*(t for t in given if t.requires_grad), *module.parameters()]
    generator = torch.Generator().manual_seed(0)
    seeds = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in results]
    return results, torch.autograd.grad(results, sources, seeds, allow_unused=True)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("name", INFOS)
def test_same_results_and_gradients(name, training, dtype):
    info = INFOS[name]
    inputs = info.module_inputs_func(info, "cpu", dtype, requires_grad=False, training=training)
    assert inputs
    for given in inputs:
        made = given.constructor_input
        torch.manual_seed(0)
        theirs = info.module_cls(*made.args, **{"dtype": dtype, **made.kwargs}).train(training)
        torch.manual_seed(0)
        ours = getattr(seqkern, info.module_cls.__name__)(
            *made.args, **{"dtype": dtype, **made.kwargs}
        ).train(training)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
        call = given.forward_input
        expected = run(theirs, copy.deepcopy(call.args), copy.deepcopy(call.kwargs))
        actual = run(ours, copy.deepcopy(call.args), copy.deepcopy(call.kwargs))
        torch.testing.assert_close(actual, expected, msg=lambda m, g=given: f"{g.desc}: {m}")
