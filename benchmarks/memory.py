"""Memory of one training step: bytes held between forward and backward, and the peak.

The peak is that of a fresh process, so that no earlier case has warmed an allocator: children are
forked from a server that has imported torch and run nothing.
"""

import multiprocessing
import re
from pathlib import Path

import torch

from .cases import Case
from .peers import make_run

STATUS = Path("/proc/self/status")


def held_bytes(run) -> int:
    """Bytes autograd keeps for backward in distinct storages, the caller's tensors aside."""
    held: dict[int, int] = {}
    own = {source.untyped_storage().data_ptr() for source in run.sources}

    def pack(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for place, size in held.items() if place not in own)


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (its peak so far) of this process in bytes."""
    return int(re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())[1]) * 1024


def _child(name: str, values: dict, pipe) -> None:
    try:
        case = Case.from_dict(values)
        torch.set_num_threads(case.threads)
        small = Case.from_dict({**values, "T": 2 if case.T > 1 else 1, "B": 1})
        make_run(name, small)()  # libraries and threads are set up, and are not counted
        run = make_run(name, case)
        before = resident("VmRSS")
        run()
        peak = max(resident("VmHWM") - before, 0)
        pipe.send({"peak": peak, "held": held_bytes(run)})
    except BaseException as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})
        raise


def measure(name: str, case: Case) -> dict[str, int] | None:
    """{"peak": bytes, "held": bytes} of a training step; None where /proc is missing."""
    if case.mode != "train" or not STATUS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, case.as_dict(), send))
    process.start()
    send.close()
    try:
        answer = receive.recv()
    except EOFError:
        answer = {"error": "the process ended without an answer"}
    process.join()
    if "error" in answer:
        raise RuntimeError(f"memory of {name}, {case.name}: {answer['error']}")
    return answer
