"""The implementations a case is timed with, each as a function that takes no argument."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from .cases import CELLS, Case
from .device import place

OURS = "seqkern"
SAVE_GATES = "seqkern, gates"  # its layers as they are by default, beside those with save="states"
PEERS = ("torch.nn", "onnxruntime", "python loop", SAVE_GATES)
Run = Callable[[], list[Tensor]]


def dtype_of(case: Case) -> torch.dtype:
    return getattr(torch, case.dtype)


def flatten(result) -> list[Tensor]:
    """The floating tensors of a module's result, output first."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in flatten(part)]


def make_module(case: Case, namespace, dtype: torch.dtype | None = None) -> nn.Module:
    """The module of a case from `torch.nn` or `seqkern`: the same weights whoever makes it."""
    options = {}
    if case.cell not in CELLS:
        options = {"num_layers": case.layers, "bidirectional": case.bidirectional}
        if case.save != "gates" and namespace is not nn:
            options["save"] = case.save
    torch.manual_seed(0)
    module = getattr(namespace, case.cell)(case.H, case.H, **options)
    return place(module.to(dtype_of(case)).to(dtype or dtype_of(case)), case)


def make_input(case: Case, dtype: torch.dtype | None = None) -> Tensor:
    """[T, B, H], or [B, H] for a cell. Values are those of the case's dtype."""
    generator = torch.Generator().manual_seed(1)
    shape = (case.B, case.H) if case.cell in CELLS else (case.T, case.B, case.H)
    x = torch.randn(shape, generator=generator)
    return place(x.to(dtype_of(case)).to(dtype or dtype_of(case)), case)


def make_state(case: Case, dtype: torch.dtype) -> tuple:
    """What follows the input in a call: the state of a cell, whose steps hardly ever begin with
    none. Layers begin with zeros, as they do by default."""
    if case.cell not in CELLS:
        return ()
    generator = torch.Generator().manual_seed(3)
    h, c = torch.randn((2, case.B, case.H), generator=generator).to(dtype_of(case)).to(dtype)
    return ((place(h, case), place(c, case)) if case.cell == "LSTMCell" else place(h, case),)


def module_run(case: Case, module: nn.Module) -> Run:
    """Runs `module` in the case's mode; gives outputs and states, then all gradients."""
    dtype = next(module.parameters()).dtype
    x = make_input(case, dtype).requires_grad_(case.mode == "train")
    argument = pack_padded_sequence(x, case.lengths) if case.packed else x
    state = make_state(case, dtype)
    if case.packed:  # packing is not what is timed
        data = argument.data.detach().requires_grad_(case.mode == "train")
        argument, x = argument._replace(data=data), data

    def infer():
        with torch.no_grad():
            return flatten(module(argument, *state))

    def forward():
        return flatten(module(argument, *state))

    if case.mode != "train":
        return {"infer": infer, "forward": forward}[case.mode]
    sources = [x, *module.parameters()]
    generator = torch.Generator().manual_seed(2)
    shape = infer()[0].shape
    grad = place(torch.randn(shape, generator=generator).to(dtype_of(case)).to(dtype), case)

    def train():
        results = flatten(module(argument, *state))
        grads = torch.autograd.grad(results[0], sources, grad)
        return [tensor.detach() for tensor in results] + list(grads)

    train.sources = sources  # memory.py does not count what the caller holds anyway
    return train


def torch_step_run(case: Case, module: nn.Module) -> Run:
    """torch.nn's layer, a step at a time."""
    x = make_input(case, next(module.parameters()).dtype)
    state = None

    def run():
        nonlocal state
        with torch.no_grad():
            output, state = module(x, state)
        return [output[0]]

    return run


def stream_run(case: Case) -> Run:
    import seqkern

    stream, x = seqkern.Stream(make_module(case, seqkern)), make_input(case)[0]
    return lambda: [stream.step(x)]


def loop_run(case: Case) -> Run:
    """torch.nn's cell in a Python loop, for scale."""
    layer = make_module(case, nn)
    cell = getattr(nn, f"{case.cell}Cell")(case.H, case.H, dtype=dtype_of(case))
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in layer.state_dict().items()})
    x = make_input(case)

    def run():
        with torch.no_grad():
            outputs, state = [], None
            for step in x:
                state = cell(step, state)
                outputs.append(flatten(state)[0])
            return [torch.stack(outputs), *(tensor[None] for tensor in flatten(state))]

    return run


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def available() -> list[str]:
    """The peers that can run here."""
    missing = [] if installed("onnxruntime") and installed("onnx") else ["onnxruntime"]
    return [peer for peer in PEERS if peer not in missing]


def takes(peer: str, case: Case) -> bool:
    """Whether a peer has what the case needs."""
    if case.device != "cpu":
        return peer == "torch.nn"
    if peer == SAVE_GATES:
        return case.save != "gates"
    plain = case.cell not in CELLS and not case.packed
    if peer == "onnxruntime":
        return plain and case.mode in ("infer", "step") and case.dtype == "float32"
    if peer == "python loop":
        return (
            plain
            and case.mode == "infer"
            and case.T == 100
            and case.layers == 1
            and not case.bidirectional
        )
    return True


def make_run(name: str, case: Case) -> Run:
    """The implementation called `name`, ready to run `case`."""
    if name == SAVE_GATES:
        return make_run(OURS, replace(case, save="gates"))
    if name == OURS:
        import seqkern

        if case.mode == "step":
            return stream_run(case)
        return module_run(case, make_module(case, seqkern))
    if name == "onnxruntime":
        from .onnx_peer import onnx_run

        return onnx_run(case)
    if name == "python loop":
        return loop_run(case)
    return torch_run(case)


def torch_run(case: Case, dtype: torch.dtype | None = None) -> Run:
    run = torch_step_run if case.mode == "step" else module_run
    return run(case, make_module(case, nn, dtype))


def reference_run(case: Case) -> Run:
    """torch.nn in float64 on the same values: what results are checked against."""
    return torch_run(case, torch.float64)
