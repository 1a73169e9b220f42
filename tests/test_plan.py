"""The planner is a pure function of sizes: csrc/cpu/plan.h."""

import pytest

from seqkern import _C

# An LSTM of 128 units in panels of 8, float32.
LSTM = {
    "B": 32,
    "H": 128,
    "K": 128,
    "gates": 4,
    "directions": 1,
    "ragged": False,
    "panel_units": 8,
    "element_size": 4,
    "min_chunk_rows": 64,
    "threads": 2,
}


def plan(**changes):
    return _C.plan(**(LSTM | changes))


def test_units_are_split_where_panels_deal_evenly():
    assert plan()["threads"] == 2 and not plan()["split_rows"]


def test_small_steps_stay_on_one_thread():
    """Below 32k flops a thread and step the barrier costs more than it saves."""
    assert plan(B=1, H=32, K=32)["threads"] == 1
    # 2 * 4 * 64 * 64 = 32k: one thread's worth; twice that is two.
    assert plan(B=1, H=64, K=64)["threads"] == 1
    assert plan(B=2, H=64, K=64)["threads"] == 2


@pytest.mark.parametrize("B, ragged, rows", [(128, False, True), (128, True, False)])
def test_rows_are_split_where_panels_do_not_deal_evenly(B, ragged, rows):
    """One panel cannot be dealt to two threads; ragged rows cannot be dealt evenly either."""
    found = plan(H=16, K=16, panel_units=16, B=B, ragged=ragged)
    assert found["split_rows"] is rows
    assert found["threads"] == (2 if rows else 1)


def test_no_more_threads_than_panels_or_than_there_are():
    assert plan(H=24, K=24, B=3, threads=64)["threads"] <= 3
    for threads in range(1, 9):
        for directions in (1, 2):
            assert 1 <= plan(threads=threads, directions=directions)["threads"] <= threads


def test_directions_get_a_team_each():
    assert plan(directions=2)["threads"] == 2
    assert plan(directions=2, threads=1)["threads"] == 1


def test_empty_batch():
    assert plan(B=0)["threads"] == 1


def test_chunk_rows():
    """1 MiB of activations, but no fewer rows than asked."""
    assert plan()["chunk_rows"] == 2**20 // (4 * 128 * 4)
    assert plan(min_chunk_rows=1000)["chunk_rows"] == 1000


@pytest.mark.parametrize(
    "offsets, rows, bounds",
    [
        ([0, 2, 4, 6, 8], 4, [0, 2, 4]),
        ([0, 2, 4, 6, 8], 5, [0, 2, 4]),
        ([0, 2, 4, 6, 8], 100, [0, 4]),
        ([0, 9, 18], 4, [0, 1, 2]),  # a step is never divided
        ([0, 5, 8, 9, 10], 5, [0, 1, 4]),
        ([0, 0, 0], 4, [0, 2]),  # an empty batch
    ],
)
def test_chunk_steps(offsets, rows, bounds):
    assert _C.chunk_steps(offsets, rows) == bounds
