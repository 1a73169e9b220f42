"""Any number of threads, of callers and of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from layers import CELLS, Case, gradients
from tolerances import check_agree, check_all
from torch.utils.data import DataLoader, Dataset

import seqkern
from seqkern import _C, functional, reference

# Small and large, split by batch and by hidden units, with a ragged end, in several chunks whose
# rows 2 or 4 threads never wait for, and weights so large that directions take turns; ragged ones in
# groups of sequences over several chunks: to the end, and up to where one sequence goes on alone.
RAGGED = (
    {"I": 8, "H": 48, "batch_sizes": tuple(range(48, 0, -1))},
    {"I": 8, "H": 48, "batch_sizes": (40,) * 30 + (1,) * 60},
)
SHAPES = (
    *RAGGED,
    {"T": 5, "B": 2, "I": 3, "H": 4},
    {"T": 20, "B": 33, "I": 16, "H": 40, "D": 2},
    {"T": 12, "B": 1, "I": 64, "H": 256},
    {"T": 40, "B": 32, "I": 8, "H": 48},
    {"I": 16, "H": 64, "D": 2, "batch_sizes": (20, 20, 11, 11, 5, 1, 1)},
    {"T": 3, "B": 20, "I": 8, "H": 640, "D": 2},
)


@pytest.fixture
def taking_turns():
    yield _C.want_turns
    _C.want_turns(False)


def compute(case, dtype=torch.float32):
    return gradients(lambda *t: case.call(functional, *t), case.arguments(dtype))


@pytest.mark.parametrize("threads", range(1, 9))
@pytest.mark.parametrize("cell", CELLS)
def test_thread_counts(cell, threads):
    """Right with any number of threads, beyond the cores too; and bitwise the same again."""
    torch.set_num_threads(threads)
    for shape in SHAPES:
        case = Case(cell, **shape)
        first = compute(case, torch.float64)
        exact = gradients(lambda *t, case=case: case.call(reference, *t), case.arguments())
        check_all(first, exact, exact)
        again = compute(case, torch.float64)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_ragged_groups_share_what_chunks_reuse(cell, dtype):
    """Where no gates are kept, a thread makes its own where another one may still read the last chunk's."""
    for shape in RAGGED:
        case = Case(cell, **shape)
        plain = case.arguments(dtype).values()
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            kept = case.call(functional, *(t.clone().requires_grad_() for t in plain))
            for _ in range(5):
                for a, b in zip(kept, case.call(functional, *plain), strict=True):
                    check_agree(a.detach(), b)


@pytest.mark.parametrize("cell", CELLS)
def test_float32_is_deterministic(capability, cell):
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for shape in SHAPES:
            case = Case(cell, **shape)
            first = compute(case)
            for _ in range(3):
                again = compute(case)
                assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_turns_give_what_threads_give(taking_turns, cell, dtype):
    """One thread that makes the parts of all, where others want the cores: bit for bit the same."""
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for shape in SHAPES:
            case = Case(cell, **shape)
            taking_turns(False)
            expected = compute(case, dtype)
            taking_turns(True)
            found = compute(case, dtype)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_fewer_threads_than_asked_for_are_no_crowd():
    """One member of a region does all of its work: the threads that the runtime refuses are missed by nobody."""
    program = """
        import torch, seqkern
        from seqkern import _C
        torch.set_num_threads(2)
        lstm, x = seqkern.LSTM(128, 128), torch.randn(100, 16, 128)
        with torch.no_grad():
            for _ in range(300):
                lstm(x)
                assert not _C.crowded()
    """
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, check=True)


def test_results_may_change_with_threads_only_by_rounding():
    case = Case("lstm", **SHAPES[1])
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(compute(case))
    for other in results[1:]:
        for name, value in other.items():
            check_agree(value, results[0][name], name)


@pytest.mark.parametrize("threads", (1, 2, 4))
def test_several_callers_at_once(threads):
    """Python threads that share a module, each with its own input."""
    torch.set_num_threads(threads)
    cases = [Case(cell, seed=i, **shape) for i, shape in enumerate(SHAPES) for cell in CELLS[:2]]
    expected = [compute(case) for case in cases]
    found, errors = [None] * len(cases), []
    start = threading.Barrier(len(cases))

    def work(i):
        try:
            torch.set_num_threads(threads)
            start.wait(60)
            for _ in range(5):
                found[i] = compute(cases[i])
        except Exception as error:  # noqa: BLE001 (shown by the main thread)
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(cases))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive(), "a thread hangs"
    assert not errors
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_level_changes_are_seen_by_all_threads():
    seen = []
    for level in seqkern.cpu_capabilities():
        with seqkern.use_cpu_capability(level):
            thread = threading.Thread(target=lambda: seen.append(seqkern.cpu_capability()))
            thread.start()
            thread.join()
    assert seen == seqkern.cpu_capabilities()


def in_child(work) -> bytes:
    """Runs work() in a forked child and returns the bytes it gave; fails where it hangs or dies."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            os.write(write, work())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {status} (14: it hung)"
    return result


# Autograd has a thread for each device then, and refuses to go on without them.
no_backward_in_forks = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU autograd does not work in a fork"
)


@no_backward_in_forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("cell", CELLS)
def test_forked_child(cell):
    """After the parent used its thread pool, forward and backward run in a child.

    The child does nothing else: torch's own large operations hang there, as the pool is gone.
    """
    torch.set_num_threads(2)
    case = Case(cell, **SHAPES[1])
    leaves = [t.requires_grad_() for t in case.arguments(torch.float64).values()]

    def step():
        results = case.call(functional, *leaves)
        return *results, *torch.autograd.grad(results, leaves, weights)

    weights = [torch.randn_like(r) for r in case.call(functional, *leaves)]
    step()  # the pool exists
    found = in_child(lambda: b"".join(t.detach().numpy().tobytes() for t in step()))
    torch.set_num_threads(1)
    expected = torch.cat([t.detach().flatten() for t in step()])
    torch.testing.assert_close(torch.frombuffer(bytearray(found), dtype=torch.float64), expected)
    torch.set_num_threads(2)
    step()  # the parent's pool is as it was


class Encoded(Dataset):
    """Items that a GRU makes in the worker, forward and backward."""

    def __init__(self):
        torch.manual_seed(0)
        self.gru = seqkern.GRU(8, 32, bidirectional=True)

    def __len__(self):
        return 8

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        x = torch.randn(20, 4, 8, generator=g).requires_grad_()
        output, h_n = self.gru(x)
        (grad,) = torch.autograd.grad(output.sin().sum(), x)
        return h_n.detach(), grad


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("context", (pytest.param("fork", marks=no_backward_in_forks), "spawn"))
def test_data_loader_workers(context):
    data = Encoded()
    data[0]  # the parent's pool exists before the workers do
    loader = DataLoader(
        data, batch_size=2, num_workers=2, timeout=120, multiprocessing_context=context
    )
    states, grads = zip(*loader, strict=True)
    expected_states, expected_grads = zip(*(data[i] for i in range(8)), strict=True)
    torch.testing.assert_close(torch.cat(states), torch.stack(expected_states))
    torch.testing.assert_close(torch.cat(grads), torch.stack(expected_grads))
