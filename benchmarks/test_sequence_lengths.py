"""pytest benchmarks --benchmark-only: each layer over sequence lengths, beside its peers.

The rounds of pytest-benchmark are not interleaved: `python -m benchmarks` gives the figures to
quote. This gives the sweep, in pytest-benchmark's own table, histograms and JSON; the report
command reads that JSON too.
"""

import pytest
import torch

from . import roofline
from .cases import LAYERS, Case
from .check import disagreements
from .peers import OURS, available, make_run, takes

LENGTHS = (1, 4, 16, 64, 256, 1024)
NAMES = [name for name in available() if name != "python loop"] + [OURS]


@pytest.fixture(autouse=True)
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("cell", LAYERS)
def test_time(benchmark, cell, mode, T, name):
    case = Case(cell, mode, T, 16, 128)
    if not takes(name, case):
        pytest.skip(f"{name} does not train")
    torch.set_num_threads(case.threads)
    run = make_run(name, case)
    wrong = disagreements(case, {"torch.nn": make_run("torch.nn", case), name: run})
    assert not wrong
    benchmark.group = f"{cell} {mode} T{T}"
    rates = roofline.measure(case)
    benchmark.extra_info.update(
        implementation=name,
        roofline=roofline.seconds(case, rates),
        rates={"product": rates.product, "read": rates.read},
        **case.as_dict(),
    )
    benchmark(run)
