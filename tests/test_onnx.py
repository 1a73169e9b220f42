"""Export to ONNX: standard nodes, any T and B, and ONNX Runtime's results are seqkern's."""

import warnings
from collections import Counter

import pytest
import torch
from layers import count_kernels
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

import seqkern
import seqkern.onnx

onnx = pytest.importorskip("onnx", reason="no onnx: pip install seqkern[dev]")
pytest.importorskip("onnxscript", reason="no onnxscript: pip install seqkern[dev]")
onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install seqkern[dev]")

I, H = 3, 4
TIME, BATCH = Dim("time"), Dim("batch")
NODES = {"LSTM", "GRU", "RNN"}
# What else may stand in a graph of layers alone: moving of data.
AROUND = {"Cast", "Concat", "Expand", "Gather", "Reshape", "Shape", "Split", "Squeeze"}
AROUND |= {"Transpose", "Unsqueeze"}


def export(module, args, shapes=None):
    """The program; no warning may point into seqkern."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = torch.onnx.export(
            module.eval(), args, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    assert not [w for w in caught if "seqkern/" in w.filename], caught
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program


def run(program, args) -> list[Tensor]:
    """ONNX Runtime's results."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    values = [tensor.numpy() for tensor in tree_leaves(args)]
    return [torch.from_numpy(r) for r in session.run(None, dict(zip(names, values, strict=True)))]


def check(program, module, args, tolerance=1e-5) -> None:
    """ONNX Runtime against the module."""
    with torch.no_grad():
        expected = tree_leaves(module(*args))
    actual = run(program, args)
    assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def recurrent(program) -> list:
    """The LSTM, GRU and RNN nodes."""
    return [node for node in program.model_proto.graph.node if node.op_type in NODES]


def attributes(node) -> dict:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def dims(values) -> list[list]:
    shapes = [value.type.tensor_type.shape.dim for value in values]
    return [[d.dim_param or d.dim_value for d in shape] for shape in shapes]


def states_of(module, *batch: int) -> tuple:
    """Random initial states as arguments after the input."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    states = [torch.randn(rows, *batch, module.hidden_size) for _ in range(2)]
    return (tuple(states),) if module.mode == "LSTM" else (states[0],)


# name: class, options, whether initial states are given
LAYERS = {
    "lstm": (seqkern.LSTM, {}, False),
    "lstm_states": (seqkern.LSTM, {}, True),
    "lstm_no_bias": (seqkern.LSTM, {"bias": False}, True),
    "lstm_both": (seqkern.LSTM, {"bidirectional": True}, True),
    "lstm_deep": (seqkern.LSTM, {"num_layers": 3, "dropout": 0.5}, True),
    "lstm_all": (
        seqkern.LSTM,
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
        False,
    ),
    "gru": (seqkern.GRU, {}, False),
    "gru_no_bias": (seqkern.GRU, {"bias": False, "batch_first": True}, True),
    "gru_all": (seqkern.GRU, {"num_layers": 2, "bidirectional": True}, True),
    "rnn_tanh": (seqkern.RNN, {}, True),
    "rnn_relu": (seqkern.RNN, {"nonlinearity": "relu", "bias": False}, False),
    "rnn_all": (
        seqkern.RNN,
        {"nonlinearity": "relu", "num_layers": 2, "bidirectional": True, "batch_first": True},
        True,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    kind, options, given = LAYERS[name]
    module = kind(I, H, **options)

    def arguments(steps, batch):
        x = torch.randn(steps, batch, I)
        x = x.transpose(0, 1) if module.batch_first else x
        return (x, *(states_of(module, batch) if given else ()))

    args = arguments(5, 2)
    places = (1, 0) if module.batch_first else (0, 1)
    x_shape = dict(zip(places, (TIME, BATCH), strict=True))
    state_shapes = [{1: BATCH}] * (len(tree_leaves(args)) - 1)
    if given:
        shapes = (x_shape, tuple(state_shapes) if module.mode == "LSTM" else state_shapes[0])
    else:
        shapes = (x_shape,)
    program = export(module, args, shapes)

    graph = program.model_proto.graph
    directions = 2 if module.bidirectional else 1
    op_type = module.mode.partition("_")[0]
    assert Counter(n.op_type for n in recurrent(program)) == {op_type: module.num_layers}
    assert {n.op_type for n in graph.node} <= AROUND | NODES
    for node in recurrent(program):
        expected = {
            "direction": b"bidirectional" if module.bidirectional else b"forward",
            "hidden_size": H,
        }
        if op_type == "GRU":
            expected["linear_before_reset"] = 1
        elif op_type == "RNN":
            expected["activations"] = [module.nonlinearity.capitalize().encode()] * directions
        assert attributes(node) == expected
        assert node.domain == ""
        assert bool(node.input[3]) == module.bias
        assert not node.input[4]  # sequence_lens

    names = [{0: "time", 1: "batch"}[p] for p in places]
    rows = module.num_layers * directions
    state_dims = [[rows, "batch", H]] * (2 if op_type == "LSTM" else 1)
    assert dims(graph.input) == [[*names, I], *(state_dims if given else [])]
    assert dims(graph.output) == [[*names, directions * H], *state_dims]

    for size in ((5, 2), (7, 3), (1, 1)):
        check(program, module, arguments(*size))


@pytest.mark.parametrize("kind", (seqkern.LSTM, seqkern.GRU, seqkern.RNN))
def test_unbatched(kind):
    module = kind(I, H)
    state = {1: None}
    shapes = ({0: TIME}, (state, state) if kind is seqkern.LSTM else state)
    program = export(module, (torch.randn(5, I), *states_of(module)), shapes)
    assert len(recurrent(program)) == 1
    check(program, module, (torch.randn(6, I), *states_of(module)))


def test_graph_is_small():
    """Nothing computes weights or states at run time where shapes are fixed and weights small."""
    program = export(seqkern.LSTM(I, H), (torch.randn(5, 2, I),))
    assert [n.op_type for n in program.model_proto.graph.node] == ["LSTM", "Squeeze"]


def test_weights_too_large_to_fold():
    module = seqkern.GRU(I, 300, bidirectional=True)
    args = (torch.randn(5, 2, I),)
    program = export(module, args)
    assert len(recurrent(program)) == 1
    check(program, module, args)


class Last(nn.Module):
    """A layer with lengths, and each sequence's last output."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, lengths, states=None):
        output, finals = self.module(x, states, lengths)
        options = self.module.batch_first, self.module.bidirectional
        return output, finals, seqkern.last_output(output, lengths, *options)


@pytest.mark.parametrize("name", ("lstm_states", "lstm_all", "gru_all", "rnn_all", "rnn_relu"))
def test_lengths(name):
    kind, options, given = LAYERS[name]
    module = Last(kind(I, H, **options)).eval()

    def arguments(lengths):
        x = torch.randn(len(lengths), 5, I)
        x = x if module.module.batch_first else x.transpose(0, 1)
        states = states_of(module.module, len(lengths)) if given else ()
        return (x, torch.tensor(lengths), *states)

    args = arguments([2, 5, 3])
    places = (1, 0) if module.module.batch_first else (0, 1)
    shapes = [dict(zip(places, (TIME, BATCH), strict=True)), {0: BATCH}]
    if given:
        state = {1: BATCH}
        shapes.append((state, state) if kind is seqkern.LSTM else state)
    program = export(module, args, tuple(shapes))
    for node in recurrent(program):
        assert node.input[4]  # sequence_lens
    assert len(recurrent(program)) == module.module.num_layers

    for lengths in ([2, 5, 3], [5, 5, 5, 5], [3], [1, 0, 4, 2, 0], [0, 0]):
        check(program, module, arguments(lengths))
    with pytest.raises(Exception, match="sequence_lens"):
        run(program, arguments([6, 1]))


def test_lengths_as_a_list():
    module = seqkern.GRU(I, H)
    program = export(module, (torch.randn(5, 3, I), None, [4, 0, 2]))
    args = (torch.randn(5, 3, I),)
    with torch.no_grad():
        expected = module(*args, lengths=[4, 0, 2])
    assert_close(run(program, args), list(expected), rtol=1e-5, atol=1e-5)


# name: class, options, whether states are given
CELLS = {
    "lstm": (seqkern.LSTMCell, {}, True),
    "lstm_no_bias": (seqkern.LSTMCell, {"bias": False}, False),
    "gru": (seqkern.GRUCell, {}, True),
    "rnn_tanh": (seqkern.RNNCell, {}, True),
    "rnn_relu": (seqkern.RNNCell, {"nonlinearity": "relu", "bias": False}, False),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    kind, options, given = CELLS[name]
    module = kind(I, H, **options)
    op_type = kind.__name__.removesuffix("Cell")

    def arguments(batch):
        states = [torch.randn(batch, H) for _ in range(2)]
        state = tuple(states) if op_type == "LSTM" else states[0]
        return (torch.randn(batch, I), *([state] if given else []))

    row = {0: BATCH}
    shapes = (row, (row, row) if op_type == "LSTM" else row)[: 2 if given else 1]
    program = export(module, arguments(2), shapes)
    assert [n.op_type for n in recurrent(program)] == [op_type]
    for batch in (2, 5):
        check(program, module, arguments(batch))


def test_cells_in_a_loop():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = seqkern.LSTMCell(I, H)

        def forward(self, x):
            states = None
            for step in x.unbind():
                states = self.cell(step, states)
            return states

    module, args = Loop(), (torch.randn(3, 2, I),)
    program = export(module, args)
    assert len(recurrent(program)) == 3
    check(program, module, args)


class Between(nn.Module):
    """A module in dtype, between float32 arguments and results."""

    def __init__(self, module, dtype):
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, x, *states):
        output, finals = self.module(x.to(self.dtype), *[s.to(self.dtype) for s in states])
        return output.float(), finals.float()


@pytest.mark.parametrize(
    "dtype, node_type, tolerance",
    ((torch.float16, "FLOAT16", 2e-3), (torch.bfloat16, "FLOAT", 1e-2)),
    ids=("float16", "bfloat16"),
)
def test_short_dtypes(dtype, node_type, tolerance):
    """The operators take float16; bfloat16 is computed in float32, as seqkern does."""
    module = Between(seqkern.GRU(I, H), dtype)
    args = (torch.randn(5, 2, I), *states_of(module.module, 2))
    program = export(module, args)
    (node,) = recurrent(program)
    weights = {t.name: t.data_type for t in program.model_proto.graph.initializer}
    types = {v.name: v.type.tensor_type.elem_type for v in program.model_proto.graph.value_info}
    assert (weights | types)[node.output[0]] == getattr(onnx.TensorProto, node_type)
    check(program, module, args, tolerance)


def test_float64_makes_valid_nodes():
    """ONNX Runtime has no kernels for them."""
    program = export(seqkern.LSTM(I, H).double(), (torch.randn(5, 2, I).double(),))
    assert len(recurrent(program)) == 1
    output = program.model_proto.graph.output[0]
    assert output.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE


def test_autocast():
    module, args = Between(seqkern.GRU(I, H), torch.float32), (torch.randn(5, 2, I),)
    with torch.autocast("cpu", torch.float16):
        program = export(module, args)
        check(program, module, args, 2e-3)
    assert len(recurrent(program)) == 1
    assert "Cast" in {n.op_type for n in program.model_proto.graph.node}


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, I)
        self.lstm = nn.LSTM(I, H, num_layers=2, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * H, 5)

    def forward(self, tokens):
        return self.linear(self.lstm(self.embedding(tokens))[0])


@pytest.mark.parametrize("way", ("convert", "patch", "patch_left"))
def test_models(way):
    with seqkern.patch():
        module = Tagger()
        if way == "patch":
            program = export_tagger(module)
    if way == "convert":
        module = seqkern.convert(seqkern.to_torch(module))
    if way != "patch":
        program = export_tagger(module)
    assert type(module.lstm) is seqkern.LSTM
    assert [n.op_type for n in recurrent(program)] == ["LSTM", "LSTM"]
    check(program, module, (torch.randint(11, (4, 9)),))


def export_tagger(module):
    return export(module, (torch.randint(11, (2, 6)),), ({0: BATCH, 1: TIME},))


def test_torchs_own_modules_under_the_patch():
    """What was built before the patch is torch's and exports as such."""
    module = nn.LSTM(I, H)
    args = (torch.randn(5, 2, I),)
    with seqkern.patch():
        program = torch.onnx.export(module.eval(), args, dynamo=True, verbose=False)
    check(program, module, args)


def test_strict_capture():
    """torch captures with Dynamo where it fails without."""

    class OnlyDynamo(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = seqkern.LSTM(I, H, num_layers=2, bidirectional=True)

        def forward(self, x):
            assert type(x) is Tensor, "captured without Dynamo"
            return self.lstm(x)

    module = OnlyDynamo()
    program = export(module, (torch.randn(5, 2, I),), ({0: TIME, 1: BATCH},))
    assert [n.op_type for n in recurrent(program)] == ["LSTM", "LSTM"]
    check(program, module, (torch.randn(7, 3, I),))


def test_projection_is_refused():
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="ONNX's LSTM has no projection"):
        export(seqkern.LSTM(I, H, proj_size=2), (torch.randn(5, 2, I),))


def test_packed_input_is_refused():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = seqkern.GRU(I, H)

        def forward(self, x, lengths):
            return self.gru(pack_padded_sequence(x, lengths, enforce_sorted=False))[1]

    args = (torch.randn(5, 2, I), torch.tensor([3, 5]))
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="needs padded input"):
        export(Packed(), args)


def test_legacy_exporter(tmp_path):
    """It traces, and a trace has torch's own functions."""
    module, args = seqkern.LSTM(I, H), (torch.randn(5, 2, I),)
    path = tmp_path / "lstm.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), args, path, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [node.name for node in session.get_inputs()]
    with torch.no_grad():
        output, _ = module(*args)
    actual = session.run(None, {name: args[0].numpy()})[0]
    assert_close(torch.from_numpy(actual), output, rtol=1e-5, atol=1e-5)


def test_eager_and_compiled_afterwards():
    """An export leaves nothing behind, and other exports keep the kernels."""
    module, x = seqkern.LSTM(I, H).eval(), torch.randn(5, 2, I)
    before = module(x)
    export(module, (x,))
    assert not seqkern.onnx.exporting()
    with torch.no_grad(), count_kernels() as calls:
        after = module(x)
    assert calls == {"lstm_forward": 1}
    assert_close(after, before, rtol=0, atol=0)
    module(x)[0].sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    program = torch.export.export(module, (x,))
    assert "seqkern.lstm" in program.graph_module.code
    assert_close(program.module()(x), before, rtol=0, atol=0)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert_close(compiled(x), before, rtol=0, atol=0)
    assert "lstm_forward" in graphs[0]


def test_device():
    """torch makes the stand-in's results on the CPU; here they are where the input is."""
    on_meta = {"device": "meta"}
    params = [torch.empty(n, **on_meta) for n in ((4 * H, I), (4 * H, H))]
    state = torch.empty(1, 2, H, **on_meta)
    results = seqkern.onnx.layer(
        "lstm", torch.empty(5, 2, I, **on_meta), None, state, state, params
    )
    assert [r.shape for r in results] == [(5, 2, H), (1, 2, H), (1, 2, H)]
    assert all(r.is_meta for r in results)
