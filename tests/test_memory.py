"""Memory of large tensors: what one has left behind serves the next."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from tolerances import check_agree

import seqkern

MIB = 2**20


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return seqkern.LSTM(16, 128)


def run(layer, steps=64):
    """Output of 4 MiB, by default, and what backward needs."""
    return layer(torch.ones(steps, 128, 16))[0]


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux alone")


@linux
def test_is_used_again(layer):
    with torch.no_grad():
        first = run(layer)
        place = first.data_ptr()
        del first
        assert run(layer).data_ptr() == place


FAULTS = """
import resource, torch, seqkern
layer, input = seqkern.LSTM(16, 128), torch.ones({steps}, 128, 16)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with torch.no_grad():
    for _ in range(20):
        layer(input)
    before = faults()
    for _ in range(100):
        layer(input)
print(faults() - before)
"""


@linux
@pytest.mark.parametrize("steps", [2, 5])  # outputs of 128 and 320 KiB, in pages of 4
def test_is_not_mapped_anew_in_each_call(steps):
    """Where malloc maps each block of 128 KiB and more, as it does until a larger one was freed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FAULTS.format(steps=steps)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 100 * 16


@linux
def test_no_more_blocks_are_kept_than_are_soon_looked_through(layer):
    with torch.no_grad():
        run(layer, 2)
        outputs = [run(layer, 2) for _ in range(1500)]
        before = resident()
        del outputs
        assert before - resident() > 32 * MIB  # of some 500 blocks of 128 KiB


def test_is_not_taken_from_those_who_use_it(layer):
    outputs = [run(layer) for _ in range(4)]
    assert len({output.data_ptr() for output in outputs}) == 4
    expected = outputs[0].detach().clone()
    view = outputs.pop(0).detach()[3:].view(-1)
    run(layer).sum().backward()
    torch.testing.assert_close(view, expected[3:].view(-1), rtol=0, atol=0)


@linux
def test_is_bounded(layer):
    with torch.no_grad():
        run(layer)
        before = resident()
        outputs = [run(layer, 64 * n) for n in range(1, 17)]  # 544 MiB, in different sizes
        assert resident() - before > 500 * MIB
        del outputs
        assert resident() - before < 300 * MIB


def test_storage_can_be_resized_and_shared(layer):
    with torch.no_grad():
        output = run(layer)
    values = output.clone()
    output.untyped_storage().resize_(2 * output.nbytes)
    assert torch.equal(output, values)
    output.untyped_storage().resize_(0)
    output.resize_(0).resize_(values.shape).copy_(values)
    assert torch.equal(output.share_memory_(), values)


def test_profiler_counts_it(layer):
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        run(layer)
    sizes = [e.self_cpu_memory_usage for e in profile.events() if "seqkern::lstm" in e.name]
    assert sum(sizes) >= 4 * MIB


@linux
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_small_pass_allocates_its_results_alone(kind):
    """Buffers come from the thread's own memory: what malloc gives are results, absent ones too, and a default state."""
    layer, input = getattr(seqkern, kind)(8, 8), torch.ones(3, 2, 8)
    with torch.no_grad():
        layer(input)
        with torch.profiler.profile(profile_memory=True) as profile:
            layer(input)
    # Not profile.events(), where what an operator takes and gives back cancels out.
    events = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    assert 0 < sum(size > 0 for size in sizes) <= 4


@linux
def test_a_threads_own_memory_ends_with_it():
    layer, input = seqkern.LSTM(64, 64), torch.ones(50, 8, 64)  # a third of a MiB of buffers
    layer(input)

    def work():
        with torch.no_grad():
            layer(input)

    before = resident()
    for _ in range(200):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert resident() - before < 20 * MIB


def test_more_buffers_than_a_threads_own_memory_holds():
    """Some buffers of one pass in it and some beside it: as in several passes with room for all."""
    layer, input = seqkern.LSTM(96, 96), torch.randn(40, 64, 96)
    with torch.no_grad():
        whole = layer(input)[0]
        parts = [layer(part)[0] for part in input.split(4, dim=1)]
    check_agree(torch.cat(parts, 1), whole)


def test_threads_at_once(layer):
    expected = run(layer).detach()
    wrong = []

    def work():
        for _ in range(5):
            with torch.no_grad():
                if not torch.equal(run(layer), expected):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@linux
def test_forked_child(layer):
    with torch.no_grad():
        expected = run(layer)
        run(layer)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(run(layer), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
