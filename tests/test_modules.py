"""seqkern's modules are torch.nn's: one table of programs, run with both, results and errors equal.

Each row is a function of a namespace, ``torch.nn`` or ``seqkern``; random numbers start from the
same seed. What it returns, or the class and message of what it raises, must be the same. The
default dtype is float64, where equal means to rounding; tests of other dtypes follow below.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from programs import ROWS
from programs.table import CELLS, LAYERS, changed, input_of, outcome, same, state, trained
from tolerances import check
from torch import nn, randn, zeros
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

import seqkern


def test_the_table_is_long():
    assert len(ROWS) >= 150


@pytest.mark.parametrize("program", ROWS)
def test_same_as_torch(float64, program):
    torchs, torch_warnings = outcome(program, nn)
    ours, our_warnings = outcome(program, seqkern)
    if isinstance(torchs, Exception) and not isinstance(ours, Exception):
        pytest.fail(f"torch raises {torchs!r}")
    if isinstance(ours, Exception) and not isinstance(torchs, Exception):
        raise ours
    same(ours, torchs)
    assert our_warnings == torch_warnings


# ---- What takes more than one row ----

FORMS = [(kind, (3, 4, 2), {"bidirectional": True}) for kind in LAYERS]
FORMS += [("LSTM", (3, 4), {"proj_size": 2, "bias": False})]
FORMS += [(kind, (3, 4), {}) for kind in CELLS]


@pytest.mark.parametrize("kind, args, kwargs", FORMS)
def test_state_dict_goes_both_ways(kind, args, kwargs):
    ours, torchs = getattr(seqkern, kind)(*args, **kwargs), getattr(nn, kind)(*args, **kwargs)
    for source, target in ((ours, torchs), (torchs, ours)):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        target.load_state_dict(source.state_dict(), strict=True)
        same(dict(target.named_parameters()), dict(source.named_parameters()))
        assert list(source.state_dict()) == list(target.state_dict())


@pytest.mark.parametrize("kind, args, kwargs", FORMS)
def test_parameters_frozen_one_by_one(float64, kind, args, kwargs):
    names = list(dict(getattr(nn, kind)(*args, **kwargs).named_parameters()))
    for frozen in names:

        def program(N, frozen=frozen):
            module = getattr(N, kind)(*args, **kwargs)
            getattr(module, frozen).requires_grad_(False)
            return trained(module, input_of(module))

        torchs, _ = outcome(program, nn)
        same(outcome(program, seqkern)[0], torchs)
        assert torchs[2][frozen] is None


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("batch_first", (False, True))
@pytest.mark.parametrize("bidirectional", (False, True))
def test_float32_dropout_has_torchs_masks(kind, batch_first, bidirectional):
    """In float32 torch's LSTM runs in oneDNN: the masks must be the same there too."""
    results = []
    for N in (nn, seqkern):
        torch.manual_seed(0)
        options = {"batch_first": batch_first, "bidirectional": bidirectional}
        module = getattr(N, kind)(3, 4, 3, dropout=0.4, **options)
        torch.manual_seed(1)
        results.append((*tree_leaves(module(torch.ones(5, 2, 3))), torch.rand(3)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("kind", (*LAYERS, *CELLS))
def test_short_dtypes(kind, dtype):
    """Weights in a short dtype: torch's results within the tolerance rule."""
    ours, torchs = getattr(seqkern, kind)(3, 16, dtype=dtype), getattr(nn, kind)(3, 16)
    torchs.load_state_dict(ours.state_dict())  # float32: what every machine can run
    exact = copy.deepcopy(torchs).double()
    x = input_of(ours).to(dtype)
    for a, b, e in zip(
        *(
            tree_leaves(m(x.to(t)))
            for m, t in zip(
                (ours, torchs, exact), (dtype, torch.float32, torch.float64), strict=True
            )
        ),
        strict=True,
    ):
        assert a.dtype == dtype
        check(a, e, b.to(dtype))


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_shapes_are_checked(kind):
    """torch's LSTM does not look at them and fails inside; ours says what torch's GRU does."""
    module = getattr(seqkern, kind)(3, 4)
    packed = pack_sequence([randn(3, 3), randn(2, 3)])
    which = "hidden[0]" if kind == "LSTM" else "hidden"
    with pytest.raises(RuntimeError) as error:
        module(packed, state(module, 5))
    assert str(error.value) == f"Expected {which} size (1, 2, 4), got [1, 5, 4]"
    with pytest.raises(
        RuntimeError, match="input.size.-1. must be equal to input_size. Expected 3"
    ):
        module(pack_sequence([randn(3, 7)]))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        module(packed.to(torch.float64))
    with pytest.raises(RuntimeError, match="input must have 2 dimensions, got 3"):
        module(PackedSequence(randn(5, 1, 3), torch.tensor([2, 2, 1])))
    with pytest.raises(RuntimeError, match="batch_sizes must add up to the 6 rows of input"):
        module(PackedSequence(randn(6, 3), torch.tensor([2, 2, 1])))


@pytest.mark.parametrize("kind", (*LAYERS, *CELLS))
def test_one_tensor_for_hx_pair(kind):
    module = getattr(seqkern, kind)(3, 4)
    if not kind.startswith("LSTM"):
        with pytest.raises((RuntimeError, ValueError)):
            module(input_of(module), zeros(2, 1, 2, 4))
        return
    with pytest.raises(TypeError, match="takes hx as a tuple"):
        module(input_of(module), zeros(2, 1, 2, 4))


@pytest.mark.parametrize("kind", LAYERS)
def test_weight_of_another_shape(kind):
    """torch reads past its end (oneDNN) or fails somewhere inside."""
    module = changed(getattr(seqkern, kind)(3, 4), weight_hh_l0=nn.Parameter(zeros(2, 2)))
    with pytest.raises(RuntimeError, match=r"w_hh must be \[G\*H, H\] = \[\d+, 4\], got \[2, 2\]"):
        module(randn(5, 2, 3))


@pytest.mark.parametrize("kind", LAYERS)
def test_deleted_weight(kind):
    """torch goes on with its copy of what was deleted; here a missing parameter is an error."""
    module = getattr(seqkern, kind)(3, 4)
    del module.weight_hh_l0
    with pytest.raises(AttributeError, match="no attribute 'weight_hh_l0'"):
        module(randn(5, 2, 3))


def test_flatten_parameters_does_nothing_and_may_be_replaced():
    module = seqkern.LSTM(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.flatten_parameters() is None
        module.flatten_parameters = lambda: None
        module(randn(5, 2, 3))


@pytest.mark.parametrize("kind", LAYERS)
def test_replica(float64, kind):
    """What DataParallel runs: a copy whose parameters are plain attributes."""
    module = getattr(seqkern, kind)(3, 4)
    replica = module._replicate_for_data_parallel()
    replica._parameters = {}
    for name, parameter in module._parameters.items():
        setattr(replica, name, 2 * parameter)
    x = randn(5, 2, 3)
    doubled = {name: 2 * p for name, p in module.named_parameters()}
    same(replica(x), torch.func.functional_call(module, doubled, (x,)))


def test_subclass_of_both():
    """As third-party code writes it: its own base first, torch's module second."""

    class Base(nn.RNNBase):
        def extra(self):
            return self.hidden_size

    class Own(Base, seqkern.LSTM):
        pass

    assert Own(3, 4).extra() == 4
    assert Own(3, 4)(randn(5, 2, 3))[0].shape == (5, 2, 4)


@pytest.mark.parametrize("learned", (True, False), ids=("hx learned", "hx given"))
@pytest.mark.parametrize("grad", (True, False), ids=("training", "inference"))
@pytest.mark.parametrize("kind, args, kwargs", FORMS)
def test_flops_are_counted(kind, args, kwargs, grad, learned):
    """As torch counts them where its layers are made of products, as those in float64 are."""
    counts = []
    for namespace in (seqkern, nn):
        module = getattr(namespace, kind)(*args, **kwargs).double()
        x = input_of(module).double().requires_grad_(grad)
        hx = tree_map(lambda s: s.double().requires_grad_(grad and learned), state(module))
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            results = module(x, hx)
            if grad:
                sum(r.sum() for r in tree_leaves(results)).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("kind", seqkern.modules.__all__)
def test_isinstance(kind):
    module = getattr(seqkern, kind)(3, 4)
    assert [k for k in seqkern.modules.__all__ if isinstance(module, getattr(nn, k))] == [kind]


# ---- torch.compile ----


@pytest.mark.parametrize("mode", ("train", "eval"))
@pytest.mark.parametrize("kind, args, kwargs", FORMS)
def test_compile_without_graph_breaks(kind, args, kwargs, mode):
    torch._dynamo.reset()
    module = getattr(seqkern, kind)(*args, **kwargs)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = input_of(module).requires_grad_()
    with torch.set_grad_enabled(mode == "train"):
        for arguments in ((x,), (x, state(module))):
            expected, results = module(*arguments), compiled(*arguments)
            torch.testing.assert_close(results, expected)
    if mode == "train":
        tree_leaves(results)[0].sin().sum().backward()
        grads = [x.grad, *(p.grad for p in module.parameters())]
        x.grad = None
        module.zero_grad()
        tree_leaves(expected)[0].sin().sum().backward()
        torch.testing.assert_close(grads, [x.grad, *(p.grad for p in module.parameters())])


@pytest.mark.parametrize("kind", LAYERS)
def test_compile_dropout(kind):
    torch._dynamo.reset()
    module = getattr(seqkern, kind)(3, 4, 3, dropout=0.5, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    x = randn(2, 5, 3)
    torch.manual_seed(3)
    expected = module(x)
    torch.manual_seed(3)
    torch.testing.assert_close(compiled(x), expected)
