"""ONNX Runtime as a peer: torch.nn's weights in a model of one recurrent operator per layer."""

import numpy
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from .cases import Case
from .peers import make_input, make_module, nn

# Where each of ONNX's gates stands in torch's order: LSTM i o f c, GRU z r n.
ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def reorder(cell: str, weight: torch.Tensor) -> numpy.ndarray:
    """[G*H, ...] from torch's gate order to ONNX's."""
    gates = weight.detach().chunk(len(ORDER[cell]))
    return torch.cat([gates[place] for place in ORDER[cell]]).numpy()


def layer_weights(case: Case, module: torch.nn.Module, layer: int) -> list[numpy.ndarray]:
    """W [D, G*H, I], R [D, G*H, H] and B [D, 2*G*H] of a layer."""
    suffixes = [f"l{layer}", f"l{layer}_reverse"][: 2 if case.bidirectional else 1]

    def stacked(name: str) -> numpy.ndarray:
        return numpy.stack([reorder(case.cell, getattr(module, f"{name}_{s}")) for s in suffixes])

    bias = numpy.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
    return [stacked("weight_ih"), stacked("weight_hh"), bias]


def kinds_of(case: Case) -> str:
    return "hc" if case.cell == "LSTM" else "h"


def make_model(case: Case, module: torch.nn.Module) -> onnx.ModelProto:
    """Each layer is the operator, giving [T, D, B, H], and its reordering to [T, B, D*H].

    The results are the output, then h (and c) of each layer: h0, h1, ..., c0, c1, ... In mode step
    the inputs are x and the states before, named as the results with _before.
    """
    merge = numpy.array([0, 0, -1], dtype=numpy.int64)
    nodes, constants, source = [], [numpy_helper.from_array(merge, "merge")], "x"
    options = {"direction": "bidirectional" if case.bidirectional else "forward"}
    if case.cell == "GRU":
        options["linear_before_reset"] = 1
    kinds = kinds_of(case)
    for n in range(case.layers):
        names = [f"w{n}", f"r{n}", f"b{n}"]
        for name, weight in zip(names, layer_weights(case, module, n), strict=True):
            constants.append(numpy_helper.from_array(weight, name))
        results = [f"steps{n}", *(f"{kind}{n}" for kind in kinds)]
        before = ["", *(f"{kind}{n}_before" for kind in kinds)] if case.mode == "step" else []
        nodes += [
            helper.make_node(
                case.cell, [source, *names, *before], results, hidden_size=case.H, **options
            ),
            helper.make_node("Transpose", [f"steps{n}"], [f"swapped{n}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"swapped{n}", "merge"], [f"y{n}"]),
        ]
        source = f"y{n}"
    states = [f"{kind}{n}" for kind in kinds for n in range(case.layers)]
    inputs = {"x": [case.T, case.B, case.H]}
    if case.mode == "step":
        inputs |= {f"{state}_before": [1, case.B, case.H] for state in states}
    graph = helper.make_graph(
        nodes,
        "layers",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in [source, *states]],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def onnx_run(case: Case):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    # Its threads may spin inside a run, not between runs: there others take their turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = make_model(case, make_module(case, nn)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": make_input(case).numpy()}

    def run() -> list[torch.Tensor]:
        """The output, h_n and, of an LSTM, c_n, as torch gives them."""
        output, *states = (torch.from_numpy(value) for value in session.run(None, inputs))
        kinds = [states[i : i + case.layers] for i in range(0, len(states), case.layers)]
        return [output, *map(torch.cat, kinds)]

    names = [f"{kind}{n}_before" for kind in kinds_of(case) for n in range(case.layers)]
    zeros = numpy.zeros((1, case.B, case.H), numpy.float32)

    def step() -> list[torch.Tensor]:
        output, *states = session.run(None, inputs)
        inputs.update(zip(names, states, strict=True))
        return [torch.from_numpy(output[0])]

    if case.mode == "step":
        inputs |= dict.fromkeys(names, zeros)
        return step
    return run
