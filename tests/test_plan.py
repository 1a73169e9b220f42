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
    "panel_units": 8,
    "element_size": 4,
    "pass_flops": 2**40,
    "min_chunk_rows": 64,
    "cache_bytes": 2**19,
    "threads": 2,
}


def plan(**changes):
    return _C.plan(**(LSTM | changes))


def test_units_are_split_where_panels_deal_evenly():
    assert plan()["threads"] == 2 and not plan()["split_rows"]


def test_small_steps_take_few_threads():
    """The barrier costs more than they save: n threads want 4k n^2 flops a step."""
    # 2 * 4 * 32 * 32 = 8k flops a row.
    assert plan(B=1, H=32, K=32)["threads"] == 1
    assert plan(B=2, H=32, K=32)["threads"] == 2
    assert plan(B=1, H=64, K=64, threads=64)["threads"] == 2
    assert plan(B=8, H=32, K=32, panel_units=1, threads=64)["threads"] == 4


@pytest.fixture
def pass_flops_count():
    """Unlike in other tests."""
    _C.ignore_pass_flops(False)
    yield
    _C.ignore_pass_flops(True)


def test_short_passes_take_few_threads(pass_flops_count):
    """As many as have a million flops each, in both directions together."""
    assert plan(pass_flops=2**21 - 1)["threads"] == 1
    assert plan(pass_flops=2**21)["threads"] == 2
    both = plan(pass_flops=2**21 - 1, directions=2)
    assert both["threads"] == 1 and both["teams"] == 1
    assert plan(pass_flops=3 * 2**20, threads=64)["threads"] == 3


def test_rows_are_split_where_weights_are_few():
    assert plan(B=8, H=64, K=64)["split_rows"]
    assert not plan(B=8, H=65, K=64)["split_rows"]
    assert not plan(B=7, H=64, K=64)["split_rows"]
    # 1 MiB of them, half of a large cache, and more; a quarter of a medium one.
    for sizes, cache_bytes in (
        ({"B": 8, "H": 256, "K": 256}, 2**21),
        ({"B": 8, "H": 128, "K": 128}, 2**20),
    ):
        assert plan(**sizes, cache_bytes=cache_bytes)["split_rows"]
        assert not plan(**sizes, cache_bytes=cache_bytes - 2**12)["split_rows"]
        assert not plan(**sizes | {"K": sizes["K"] + 1}, cache_bytes=cache_bytes)["split_rows"]
    # The busiest of eight threads would have 5 of 33 rows, or an eighth of the units.
    assert not plan(B=33, H=64, K=64, threads=8)["split_rows"]
    assert plan(B=40, H=64, K=64, threads=8)["split_rows"]


def test_rows_are_split_where_there_are_too_few_panels():
    """One panel for two threads."""
    found = plan(H=16, K=16, panel_units=16, B=128)
    assert found["split_rows"] and found["threads"] == 2


def test_units_are_split_where_few_panels_are_left():
    """Five panels for four threads: the fifth is shared, if it has rows enough."""
    found = plan(H=80, K=80, panel_units=16, B=64, threads=4)
    assert found["threads"] == 4 and not found["split_rows"]
    one = {"H": 32, "K": 32, "panel_units": 32}
    assert plan(**one, B=5)["threads"] == 1
    assert plan(**one, B=6)["threads"] == 2


def test_panels_are_read_there_and_back_where_they_do_not_stay_in_the_cache():
    """4 MiB of weights, 2 MiB to each of two threads; more than three quarters of a large cache."""
    sizes = {"B": 1, "H": 512, "K": 512, "panel_units": 16}
    assert plan(**sizes, cache_bytes=2**21)["alternate"]
    assert not plan(**sizes, cache_bytes=3 * 2**20)["alternate"]
    assert not plan(**sizes, cache_bytes=2**19)["alternate"]
    # Half of a medium cache, and less.
    half = sizes | {"H": 256, "K": 256}
    assert plan(**half, cache_bytes=2**20)["alternate"]
    assert not plan(**half | {"K": 255}, cache_bytes=2**20)["alternate"]


def test_no_more_threads_than_panels_or_than_there_are():
    assert plan(H=24, K=24, B=3, threads=64)["threads"] <= 3
    for threads in range(1, 9):
        for directions in (1, 2):
            assert 1 <= plan(threads=threads, directions=directions)["threads"] <= threads


def test_directions_get_a_team_each():
    assert plan(directions=2)["threads"] == plan(directions=2)["teams"] == 2
    assert plan(directions=2, threads=1)["threads"] == 1
    assert plan(directions=2, threads=1)["teams"] == 1


def test_directions_with_large_weights_take_turns():
    """3 MiB of them to a core: 4 MiB are shared by two teams of one, but not by two of two."""
    large = {"H": 512, "K": 512, "panel_units": 16, "directions": 2}
    assert plan(**large)["teams"] == 1 and plan(**large)["threads"] == 2
    assert plan(**large, threads=4)["teams"] == 2 and plan(**large, threads=4)["threads"] == 4


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
        (list(range(0, 672, 32)), 512, [0, 10, 20]),  # not 16 steps and 4
        (list(range(0, 1600, 200)), 512, [0, 2, 4, 5, 7]),
        ([0, 9, 18], 4, [0, 1, 2]),  # a step is never divided
        ([0, 5, 8, 9, 10], 5, [0, 1, 4]),
        ([0, 0, 0], 4, [0, 2]),  # an empty batch
    ],
)
def test_chunk_steps(offsets, rows, bounds):
    assert _C.chunk_steps(offsets, rows) == bounds


def test_chunk_steps_with_a_bound():
    offsets = [0, 4, 8, 12, 13, 14, 15]
    assert _C.chunk_steps(offsets, 100, bound=3) == [0, 3, 6]
    assert _C.chunk_steps(offsets, 8, bound=3) == [0, 2, 3, 6]
    assert _C.chunk_steps(offsets, 100, bound=6) == [0, 6]


def rows_of(lengths):
    """Offsets of the steps of sequences with these lengths."""
    steps = [sum(length > t for length in lengths) for t in range(max(lengths))]
    return [sum(steps[:t]) for t in range(len(steps) + 1)]


@pytest.mark.parametrize(
    "lengths, groups, bounds",
    [
        ([10] * 32, 2, [0, 16, 32]),
        ([10] * 32, 1, [0, 32]),
        ([10] * 33, 4, [0, 9, 18, 27, 33]),  # the largest as small as can be
        ([100] * 8 + [50] * 16, 2, [0, 8, 24]),
        ([100] + [10] * 40, 2, [0, 4, 41]),  # some beside one that takes long in any case
        ([5, 5], 4, [0, 2, 2, 2, 2]),  # weights are read once for few rows
    ],
)
def test_row_groups(lengths, groups, bounds):
    assert _C.row_groups(rows_of(lengths), 0, max(lengths), groups) == bounds


def test_row_groups_of_some_steps():
    """Of the last ten steps nine sequences are left."""
    offsets = rows_of([100] * 9 + [90] * 50)
    assert _C.row_groups(offsets, 90, 100, 2) == [0, 5, 9]


@pytest.mark.parametrize(
    "lengths, of_all, of_chunk",
    [
        ([50] * 32, 50, 50),
        (list(range(3, 99, 3)), 96, 75),  # as many rows for each, and few at the end
        ([1000] + [10] * 31, 10, 10),  # the long one alone keeps one thread busy
        ([50] * 4, 0, 0),
    ],
)
def test_grouped_steps(lengths, of_all, of_chunk):
    offsets = rows_of(lengths)
    assert _C.grouped_steps(offsets, 2, of_all=True) == of_all
    assert _C.grouped_steps(offsets, 2, of_all=False) == of_chunk


def test_slow_pairs():
    """Where a pair's product is slow, it pays for few products, or for few rows with weights that do not
    stay in a core's cache."""
    large = 4 * 512 * 512
    assert _C.slow_pairs_pay(B=1, R=32, weights=1024)
    assert not _C.slow_pairs_pay(B=1, R=33, weights=1024)
    assert _C.slow_pairs_pay(B=4, R=500, weights=large)
    assert not _C.slow_pairs_pay(B=5, R=500, weights=large)
