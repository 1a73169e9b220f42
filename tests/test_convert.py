"""seqkern.convert, to_torch and patch: models change sides, everything on them stays."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import types
import warnings

import pytest
import torch
from programs.table import input_of, recurrent_weight
from torch import nn, randn
from torch.nn.utils import parametrize

import seqkern

KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
EARLY = {kind: getattr(nn, kind) for kind in KINDS}


class Model(nn.Module):
    """A bit of everything that hangs on a model."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.rnns = nn.ModuleList([nn.LSTM(3, 4), nn.GRU(4, 4, 2, bidirectional=True)])
        self.again = self.rnns[0]
        self.cell = nn.GRUCell(8, 4)
        self.norm = nn.BatchNorm1d(4)
        self.listed = [self.rnns[0], {"cell": self.cell}]
        self.bound = self.step
        self.part = functools.partial(self.step, factor=2)
        self.calls = 0
        self.rnns[0].register_forward_hook(self.count)

    def count(self, module, arguments, results):
        self.calls += 1

    def step(self, x, factor=1):
        return factor * self.cell(x)

    def forward(self, tokens):
        x, _ = self.again(self.embedding(tokens))
        x, _ = self.rnns[1](x)
        return self.norm(self.part(x[-1]) + self.bound(x[0]))


class OwnLSTM(nn.LSTM):
    pass


TOKENS = torch.arange(12).remainder(7).view(4, 3)


def types_of(model):
    return [type(m) for m in model.modules()]


# ---- convert and to_torch ----


@pytest.mark.parametrize("inplace", (False, True))
def test_model(float64, inplace):
    model = Model()
    before, names, reprs = types_of(model), list(model.state_dict()), repr(model)
    tensors = [*model.parameters(), *model.buffers()]
    expected = copy.deepcopy(model)(TOKENS)
    fast = seqkern.convert(model, inplace=inplace)
    assert (fast is model) == inplace
    assert [type(fast.rnns[0]), type(fast.rnns[1]), type(fast.cell)] == [
        seqkern.LSTM,
        seqkern.GRU,
        seqkern.GRUCell,
    ]
    assert list(fast.state_dict()) == names and repr(fast) == reprs
    pairs = zip([*fast.parameters(), *fast.buffers()], tensors, strict=True)
    assert all(a is b for a, b in pairs)
    torch.testing.assert_close(fast(TOKENS), expected)
    if not inplace:
        assert types_of(model) == before and not any(
            a is b for a, b in zip(fast.modules(), model.modules(), strict=True)
        )
    back = seqkern.to_torch(fast, inplace=inplace)
    assert types_of(back) == before
    pairs = zip([*back.parameters(), *back.buffers()], tensors, strict=True)
    assert all(a is b for a, b in pairs)


def test_copy_refers_to_itself():
    model = Model()
    fast = seqkern.convert(model)
    assert fast.again is fast.rnns[0] is fast.listed[0]
    assert fast.listed[1]["cell"] is fast.cell
    assert fast.bound.__self__ is fast and fast.part.func.__self__ is fast
    fast(TOKENS)
    assert (fast.calls, model.calls) == (1, 0)  # the hook is a method of the copy
    assert model.bound.__self__ is model


def test_copy_is_apart_but_for_tensors():
    model = Model()
    fast = seqkern.convert(model).eval()
    fast.rnns.append(nn.Linear(1, 1))
    fast.rnns[0].register_forward_hook(lambda *a: 1 / 0)
    fast.rnns[0].weight_ih_l0 = nn.Parameter(torch.zeros(16, 3))
    assert model.training and len(model.rnns) == 2 and len(model.rnns[0]._forward_hooks) == 1
    assert model.rnns[0]._flat_weights[0] is model.rnns[0].weight_ih_l0
    model(TOKENS)


@pytest.mark.parametrize("inplace", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_root(kind, inplace):
    model = getattr(nn, kind)(3, 4)
    fast = seqkern.convert(model, inplace)
    assert type(fast) is getattr(seqkern, kind) and (fast is model) == inplace
    x = input_of(fast)
    torch.testing.assert_close(fast(x), seqkern.to_torch(fast)(x))
    assert type(seqkern.to_torch(fast)) is getattr(nn, kind)


def test_optimizer_goes_on(float64):
    losses = []
    for convert in (lambda m: m, seqkern.convert, lambda m: seqkern.convert(m, inplace=True)):
        torch.manual_seed(0)
        model = Model()
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(TOKENS).sin().sum().backward()
            optimizer.step()
            model = convert(model)
        losses.append(model.eval()(TOKENS))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_tied_and_frozen():
    model = nn.ModuleList([nn.LSTM(4, 4), nn.LSTM(4, 4)])
    model[1].weight_hh_l0 = model[0].weight_ih_l0
    model[0].bias_ih_l0.requires_grad_(False)
    fast = seqkern.convert(model)
    assert fast[1].weight_hh_l0 is fast[0].weight_ih_l0 is model[0].weight_ih_l0
    assert not fast[0].bias_ih_l0.requires_grad
    assert len(list(fast.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize("inplace", (False, True))
def test_everything_on_a_module(inplace):
    module, seen = nn.LSTM(3, 4).eval(), []
    module.tag = object()
    module.register_buffer("extra", torch.ones(2))
    module.register_buffer("hidden", torch.ones(2), persistent=False)
    module.register_forward_pre_hook(lambda m, a: seen.append(("pre", m)))
    module.register_forward_hook(lambda m, a, r: seen.append(("post", m)))
    module.register_full_backward_hook(lambda m, gi, go: seen.append(("backward", m)))
    module.register_state_dict_post_hook(lambda m, d, p, meta: d.update(more=torch.ones(1)))
    module.register_load_state_dict_pre_hook(lambda m, d, *rest: (d.pop("more"), seen.append(m)))
    module.flatten_parameters = types.MethodType(lambda self: seen.append(("flat", self)), module)
    tag = module.tag
    fast = seqkern.convert(module, inplace)
    fast(randn(5, 2, 3).requires_grad_())[0].sum().backward()
    fast.flatten_parameters()
    fast.load_state_dict(fast.state_dict())
    assert seen == [("pre", fast), ("post", fast), ("backward", fast), ("flat", fast), fast]
    assert fast.tag is tag and not fast.training
    assert "extra" in fast.state_dict() and "hidden" not in fast.state_dict()


@pytest.mark.parametrize("inplace", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_parametrized(kind, inplace):
    model = nn.Sequential(getattr(nn, kind)(3, 4))
    name = recurrent_weight(model[0])
    torch.nn.utils.parametrizations.weight_norm(model[0], name)
    expected, names = model(input_of(model[0]).fill_(0.5)), list(model.state_dict())
    fast = seqkern.convert(model, inplace)
    assert isinstance(fast[0], getattr(seqkern, kind)) and list(fast.state_dict()) == names
    torch.testing.assert_close(fast(input_of(fast[0]).fill_(0.5)), expected)
    back = seqkern.to_torch(fast)
    assert isinstance(back[0], EARLY[kind]) and not isinstance(back[0], getattr(seqkern, kind))
    parametrize.remove_parametrizations(fast[0], name)
    assert type(fast[0]) is getattr(seqkern, kind)
    torch.testing.assert_close(fast(input_of(fast[0]).fill_(0.5)), expected)
    if not inplace:
        torch.testing.assert_close(model(input_of(model[0]).fill_(0.5)), expected)


def test_subclasses_are_left_alone_with_one_warning():
    model = nn.Sequential(OwnLSTM(3, 4), nn.Sequential(OwnLSTM(3, 4), nn.GRU(3, 4)))
    with pytest.warns(UserWarning, match=r"seqkern.convert left .*: test_convert.OwnLSTM$") as seen:
        fast = seqkern.convert(model)
    assert len(seen) == 1 and seen[0].filename == __file__
    assert type(fast[0]) is OwnLSTM and type(fast[1][1]) is seqkern.GRU

    class Own(seqkern.LSTM):
        pass

    with pytest.warns(UserWarning, match=r"seqkern.to_torch left .*Own$"):
        assert type(seqkern.to_torch(Own(3, 4))) is Own


def test_no_warning_otherwise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = seqkern.convert(Model())
        fast(TOKENS).sum().backward()
        seqkern.to_torch(fast)(TOKENS)
        with seqkern.patch():
            assert types_of(seqkern.convert(Model())) == types_of(seqkern.convert(fast))
            seqkern.to_torch(Model())(TOKENS)
            module = nn.GRU(3, 4)
            torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
            seqkern.convert(module)


def test_weight_drop():
    """A parameter taken out, a plain tensor in its place."""
    module = nn.LSTM(3, 4)
    raw = module._parameters.pop("weight_hh_l0")
    module.register_parameter("weight_hh_l0_raw", raw)
    module.weight_hh_l0 = 2 * raw
    x = randn(5, 2, 3)
    torch.testing.assert_close(seqkern.convert(module)(x), module(x))


def test_no_module():
    with pytest.raises(TypeError, match=r"seqkern.convert takes a torch.nn.Module, got list"):
        seqkern.convert([nn.LSTM(3, 4)])


def test_modules_outside_of_the_tree_are_shared():
    model, teacher = Model(), nn.LSTM(3, 4)
    model.teacher = [teacher]
    assert seqkern.convert(model).teacher[0] is teacher and type(teacher) is nn.LSTM


def test_scripted_parts_stay():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.LSTM(3, 4)))
    fast = seqkern.convert(nn.Sequential(scripted, nn.GRU(3, 4)))
    assert fast[0] is scripted and type(fast[1]) is seqkern.GRU


def test_compiled_model():
    torch._dynamo.reset()
    model = torch.compile(nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4)), backend="aot_eager")
    x = randn(5, 2, 3)
    expected = model(x)
    fast = seqkern.convert(model)
    assert type(fast._orig_mod[1]) is seqkern.GRU and type(model._orig_mod[1]) is nn.GRU
    calls = []
    fast._orig_mod[1].register_forward_hook(lambda *a: calls.append(1))
    torch.testing.assert_close(fast(x), expected)
    assert calls


def test_module_compiled_in_place():
    model = nn.Sequential(nn.GRU(3, 4))
    model.compile(backend="aot_eager")
    fast = seqkern.convert(model)
    fast[0].register_forward_hook(lambda m, a, r: "own")
    assert fast(randn(5, 2, 3)) == "own"


def test_graph_module():
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.LSTM(3, 4)))
    fast = seqkern.convert(graph)
    x = randn(5, 2, 3)
    torch.testing.assert_close(fast(x), graph(x))
    assert type(fast.get_submodule("0")) is seqkern.LSTM and type(fast) is not type(graph)


# ---- patch ----


@pytest.fixture(params=("name", "early", "modules", "rnn"))
def constructor(request):
    """Where third-party code may have torch's classes from."""
    return {
        "name": lambda kind: getattr(nn, kind),
        "early": EARLY.get,
        "modules": lambda kind: getattr(nn.modules, kind),
        "rnn": lambda kind: getattr(nn.modules.rnn, kind),
    }[request.param]


@pytest.mark.parametrize("kind", KINDS)
def test_patch_builds_ours(constructor, kind):
    before = constructor(kind)(3, 4)
    with seqkern.patch():
        during = constructor(kind)(3, 4)
        assert type(during) is getattr(seqkern, kind) and type(before) is EARLY[kind]
        assert isinstance(during, constructor(kind)) and isinstance(before, constructor(kind))
        assert type(seqkern.convert(before)) is getattr(seqkern, kind)
    after = constructor(kind)(3, 4)
    assert type(after) is EARLY[kind] and isinstance(during, EARLY[kind])
    x = input_of(before)
    for module in (before, during, after):
        module.load_state_dict(before.state_dict())
        torch.testing.assert_close(module(x), before(x))


def everything():
    """What a patch touches."""
    return [
        (cls, cls.__bases__, cls.__mro__, dict(vars(cls)))
        for kind in KINDS
        for cls in (getattr(nn, kind), getattr(seqkern, kind))
    ] + [
        nn.LSTM,
        nn.modules.LSTM,
        list(sys.meta_path),
        [n for n, m in sys.modules.items() if n.startswith("torch.") and "type" in vars(m)],
    ]


def test_patch_leaves_nothing_behind():
    before = everything()
    with seqkern.patch():
        assert everything() != before
    assert everything() == before
    with pytest.raises(ZeroDivisionError), seqkern.patch():
        raise ZeroDivisionError
    assert everything() == before


def test_nested_and_reentrant():
    one, two = seqkern.patch(), seqkern.patch()
    with one, two:
        with one:
            assert type(nn.GRU(3, 4)) is seqkern.GRU
        assert type(nn.GRU(3, 4)) is seqkern.GRU
    assert type(nn.GRU(3, 4)) is EARLY["GRU"]
    assert one.start() is one
    two.start()
    one.stop()  # in any order
    assert type(nn.GRU(3, 4)) is seqkern.GRU
    with pytest.raises(RuntimeError, match=r"stop\(\) without start\(\)"):
        one.stop()
    two.stop()
    assert type(nn.GRU(3, 4)) is EARLY["GRU"]


def test_decorator():
    @seqkern.patch()
    def build():
        return nn.RNN(3, 4, nonlinearity="relu")

    assert type(build()) is seqkern.RNN and type(build()) is seqkern.RNN
    assert type(nn.RNN(3, 4)) is EARLY["RNN"]


def test_a_failing_start_is_undone(monkeypatch):
    before = everything()
    with monkeypatch.context() as m:
        m.setattr(sys.modules["seqkern.patch"], "after_import", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            seqkern.patch().start()
    assert everything() == before
    seqkern.patch().start().stop()


def test_subclasses_stay_torchs():
    with seqkern.patch():

        class Inside(nn.LSTM):
            def __init__(self):
                super().__init__(3, 4)

        class Old(nn.GRU):
            def __init__(self):
                nn.GRU.__init__(self, 3, 4)

            def forward(self, x):
                return nn.GRU.forward(self, x)[0]

        modules = [OwnLSTM(3, 4), Inside(), Old()]
        for module in modules:
            module(randn(5, 2, 3))
            assert not isinstance(module, (seqkern.LSTM, seqkern.GRU))
    for module in [*modules, Inside(), Old()]:
        assert isinstance(module, (nn.LSTM, nn.GRU))
        module(randn(5, 2, 3))


def test_subclasses_of_ours_in_a_patch():
    with seqkern.patch():

        class Own(seqkern.LSTM):
            pass

        module = Own(3, 4)
        assert isinstance(module, nn.LSTM)
        module(randn(5, 2, 3))
        assert seqkern.GRUCell(3, 4)(randn(2, 3)).shape == (2, 4)
    Own(3, 4)(randn(5, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_and_copies(kind):
    outside = getattr(nn, kind)(3, 4)
    saved = pickle.dumps(outside)
    with seqkern.patch():
        inside = getattr(nn, kind)(3, 4)
        saved_inside = pickle.dumps(inside)
        assert type(pickle.loads(saved)) is EARLY[kind]
        assert type(copy.deepcopy(outside)) is EARLY[kind]
        assert type(copy.deepcopy(inside)) is type(pickle.loads(saved_inside))
    x = input_of(inside)
    loaded = pickle.loads(saved_inside)
    assert type(loaded) is getattr(seqkern, kind)
    torch.testing.assert_close(loaded(x), inside(x))


def test_pickle_of_a_patch_loads_elsewhere(tmp_path):
    with seqkern.patch():
        torch.save(nn.Sequential(nn.LSTM(3, 4)), tmp_path / "model.pt")
    program = (
        "import sys, torch\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "assert model(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "model.pt"], check=True)


def test_patched_transformer_of_models():
    """A module of torch itself that builds one: what counts is the class, not who asks."""
    with seqkern.patch():
        m = torch.nn.utils.skip_init(nn.LSTMCell, 3, 4)
        with torch.device("meta"):
            n = nn.LSTM(3, 4)
    assert type(m) is seqkern.LSTMCell and type(n) is seqkern.LSTM
    assert n.weight_ih_l0.is_meta


# ---- patch and torch.compile ----

COMPILED = ("LSTM", "GRU", "RNN", "LSTMCell")


def compiled(module):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("built", ("before", "during", "after"))
@pytest.mark.parametrize("kind", COMPILED)
def test_fullgraph_in_a_patch(kind, built):
    """Modules built before, in and after another patch, compiled and run in one."""
    module = getattr(nn, kind)(3, 4)
    if built != "before":
        with seqkern.patch():
            module = getattr(nn, kind)(3, 4)
    if built == "after":
        module = getattr(nn, kind)(3, 4)
    x = input_of(module).requires_grad_()
    # torch's own LSTM does not compile with gradients: oneDNN's operator, patch or no patch.
    train = built == "during" or kind != "LSTM"
    with seqkern.patch(), torch.set_grad_enabled(train):
        run = compiled(module)
        torch.testing.assert_close(run(x), module(x))
        if train:
            run(x)[0].sum().backward()
            assert x.grad is not None
    if built == "during":
        run(x.detach())  # and once more outside, compiled again: what torch's refuse


@pytest.mark.parametrize("kind", COMPILED)
def test_fullgraph_after_the_patch(kind):
    with seqkern.patch():
        module = getattr(nn, kind)(3, 4)
        inside = compiled(module)
        inside(input_of(module))
    x = input_of(module)
    torch.testing.assert_close(inside(x), module(x))
    torch.testing.assert_close(compiled(module)(x), module(x))


class Asks(nn.Module):
    """A program that goes by the class, as many do."""

    def __init__(self, kind):
        super().__init__()
        self.layer = getattr(nn, kind)(3, 4)

    def start(self, batch):
        state = torch.ones(*(() if isinstance(self.layer, nn.RNNCellBase) else (1,)), batch, 4)
        return (state, state) if isinstance(self.layer, (nn.LSTM, nn.LSTMCell)) else state

    def forward(self, x):
        return self.layer(x, self.start(x.size(-2)))


@pytest.mark.parametrize("kind", KINDS)
def test_isinstance_in_a_converted_model(kind):
    """And Dynamo, which refuses what is an nn.LSTM, takes it all the same, without a setting that
    lasts."""
    model = Asks(kind)
    fast = seqkern.convert(model)
    assert type(fast.layer) is getattr(seqkern, kind) and isinstance(fast.layer, EARLY[kind])
    x = input_of(fast.layer).requires_grad_()
    expected = model(x)
    torch.testing.assert_close(fast(x), expected)
    graph = compiled(fast)
    torch.testing.assert_close(graph(x), expected)
    graph(x)[0].sum().backward()
    assert x.grad is not None and not torch._dynamo.config.allow_rnn


@pytest.mark.parametrize("first", ("torch._dynamo", "seqkern"))
def test_dynamo_before_or_after(first):
    program = f"""
import {first}, torch, seqkern
class Own(seqkern.GRU):
    pass
for module in (Own(3, 4), seqkern.RNN(3, 4)):
    torch.compile(module, fullgraph=True, backend="eager")(torch.randn(5, 2, 3))
broken = torch.compile(torch.nn.GRU(3, 4), fullgraph=True, backend="eager")
try:
    broken(torch.randn(5, 2, 3))
except torch._dynamo.exc.Unsupported:
    raise SystemExit  # torch's own modules are where they were
raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_allow_rnn_is_restored():
    config = torch._dynamo.config
    for value in (False, True):
        config.allow_rnn = value
        try:
            with seqkern.patch():
                assert config.allow_rnn
            assert config.allow_rnn == value
        finally:
            config.allow_rnn = False


def test_dynamo_is_not_imported_for_a_patch():
    """And where it is imported later, it finds what the layers and the patch want."""
    program = """
import sys, torch
finders = len(sys.meta_path)
import seqkern
patch = seqkern.patch().start()
assert "torch._dynamo" not in sys.modules
module = torch.nn.LSTM(3, 4)
torch.compile(module, fullgraph=True, backend="aot_eager")(torch.randn(5, 2, 3))
assert torch._dynamo.config.allow_rnn
patch.stop()
assert not torch._dynamo.config.allow_rnn and len(sys.meta_path) == finders
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dynamo", (False, True), ids=("before dynamo", "after dynamo"))
def test_a_patch_left_on_says_nothing_at_exit(dynamo):
    program = "import torch, seqkern; seqkern.patch().start(); torch.nn.GRU(3, 4)"
    if dynamo:
        program = "import torch._dynamo; " + program
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stderr == ""


@pytest.mark.filterwarnings("ignore")
def test_quantization_takes_what_to_torch_gives():
    """torch.ao goes by exact type; its dynamic quantization passes over other modules."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this PyTorch has no fbgemm")
    model = nn.Sequential(nn.LSTM(3, 4))
    ours = seqkern.convert(model)
    quantize = torch.ao.quantization.quantize_dynamic
    assert type(quantize(ours, {nn.LSTM})[0]) is seqkern.LSTM
    x = torch.randn(5, 2, 3)
    expected = quantize(model, {nn.LSTM})(x)
    quantized = quantize(seqkern.to_torch(ours), {nn.LSTM})
    assert type(quantized[0]) is torch.ao.nn.quantized.dynamic.LSTM
    assert torch.equal(quantized(x)[0], expected[0])


@pytest.fixture
def fbgemm():
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this PyTorch has no fbgemm")


@pytest.mark.filterwarnings("ignore")  # torch.ao warns of itself
@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_quantization_in_a_patch(fbgemm, kind):
    """torch.ao asks type(module), and is told torch's class while a patch is on."""
    if kind == "RNN":
        pytest.skip("torch has no quantized RNN")
    module = EARLY[kind](3, 4)
    model = nn.Sequential(module)
    expected = torch.ao.quantization.quantize_dynamic(model, {EARLY[kind]})
    with seqkern.patch():
        ours = nn.Sequential(getattr(nn, kind)(3, 4))
        assert type(ours[0]) is getattr(seqkern, kind)
        ours.load_state_dict(model.state_dict())
        quantized = torch.ao.quantization.quantize_dynamic(ours, {EARLY[kind]})
    assert type(quantized[0]) is type(expected[0]) is not EARLY[kind]
    x = input_of(module).float()
    torch.testing.assert_close(quantized(x), expected(x), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_fx_quantization_in_a_patch(fbgemm):
    """By modules of torch.ao that are imported in the patch."""
    program = """
import torch, seqkern
from torch import nn
from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig
from torch.ao.nn.quantizable import LSTMCell

def quantized():
    from torch.ao.quantization import quantize_fx
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LSTM(3, 4)).eval(), torch.randn(5, 2, 3)
    mapping = QConfigMapping().set_object_type(nn.LSTM, default_dynamic_qconfig)
    converted = quantize_fx.convert_fx(quantize_fx.prepare_fx(model, mapping, (x,)))
    assert isinstance(converted.get_submodule("0"), torch.ao.nn.quantized.dynamic.LSTM)
    return model[0], converted(x)[0]

with seqkern.patch():
    ours, y = quantized()
    assert type(ours) is seqkern.LSTM
    cell = nn.LSTMCell(3, 4)
    cell.qconfig = torch.ao.quantization.default_qconfig
    assert type(LSTMCell.from_float(cell)) is LSTMCell
torchs, expected = quantized()
assert type(torchs) is nn.LSTM and torch.equal(y, expected)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


@pytest.mark.filterwarnings("ignore")
def test_structured_pruning_in_a_patch():
    """torch.ao asks for the type before parametrizations, which is a base of the module's class."""
    from torch.ao.pruning._experimental.pruner import LSTMSaliencyPruner

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.LSTM(4, 6, 2)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            output, _ = self.layers(x)
            return self.head(output)

    def pruned():
        torch.manual_seed(0)
        model, x = Model(), torch.randn(5, 2, 4)
        pruner = LSTMSaliencyPruner({"sparsity_level": 0.5})
        names = [f"layers.weight_{w}_l{layer}" for w in ("ih", "hh") for layer in (0, 1)]
        pruner.prepare(model, [{"tensor_fqn": name} for name in names])
        pruner.enable_mask_update = True
        pruner.step()
        return model.layers, pruner.prune(), x

    torchs, expected, x = pruned()
    with seqkern.patch():
        ours, model, _ = pruned()
    assert isinstance(ours, seqkern.LSTM) and not isinstance(torchs, seqkern.LSTM)
    assert model.layers.weight_hh_l1.shape == expected.layers.weight_hh_l1.shape == (12, 3)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model(x), expected(x))

    before = nn.utils.parametrize.type_before_parametrizations
    nn.utils.parametrize.register_parametrization(ours, "weight_ih_l0", nn.Identity())
    assert before(ours) is seqkern.LSTM
    with seqkern.patch():
        told = nn.utils.parametrize.type_before_parametrizations
        assert told(ours) is EARLY["LSTM"]
    assert told(ours) is before(ours) is nn.utils.parametrize.type_before_parametrizations(ours)


@pytest.mark.filterwarnings("ignore")
def test_what_torch_ao_does_with_type(fbgemm):
    with seqkern.patch():
        told = sys.modules["torch.ao.quantization.quantize"].type
        assert told(nn.GRU(3, 4)) is EARLY["GRU"] and told(3) is int and told(int) is type
        assert isinstance(int, told) and not isinstance(3, told)
        assert told("Name", (int,), {}).__mro__[1] is int
