"""The CUDA kernels, executed on the CPU: every tier under every schedule, held to the tolerance
rule. A schedule may not change a bit of any result."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import CELLS, Case, check_runs, gradients

from seqkern import functional, ops

host = torch.ops.seqkern_cuda_host
try:
    TIERS = host.tiers()
except AttributeError:
    pytest.skip("needs a build with SEQKERN_CUDA=host: make cuda-host", allow_module_level=True)

TYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}
# Every cell, and the projected LSTM beside them.
KINDS = (*CELLS, "lstm_projected")
SCHEDULES = {
    "forward": ("forward", 0),
    "reverse": ("reverse", 0),
    "greedy": ("greedy", 0),
    **{f"random {seed}": ("random", seed) for seed in (1, 2, 3)},
}


@contextlib.contextmanager
def device(capability=0, multiprocessors=0, shared=0):
    """The modelled device, where a value is 0 an A100's with 8 multiprocessors."""
    host.set_device(capability, multiprocessors, shared)
    try:
        yield
    finally:
        host.set_device(0, 0, 0)


@contextlib.contextmanager
def running(schedule: str, tier: str = "", chunk_rows: int = 0):
    host.set_schedule(*SCHEDULES[schedule])
    host.force_plan(tier, chunk_rows)
    try:
        yield
    finally:
        host.set_schedule("forward", 0)
        host.force_plan("", 0)


def case(kind: str, **sizes) -> Case:
    cell = kind.removesuffix("_projected")
    # torch has no projection to H itself: none where H is 1.
    return Case(cell, P=sizes["H"] // 2 if cell != kind else 0, **sizes)


def supported(tier: str, c: Case, type: str) -> bool:
    batch = c.B if c.batch_sizes is None else c.batch_sizes[0]
    return host.supports(tier, c.cell, type, batch, c.H, c.P or c.H, c.D, c.P > 0)


# What each tier takes; a tier that stops doing so would no longer be tested.
TIERS_OF_KINDS = [
    (tier, kind) for tier in TIERS for kind in KINDS if tier == "stepwise" or kind in CELLS
]
TYPES_OF_TIERS = {tier: ("bf16", "f16") if tier == "mma" else tuple(TYPES) for tier in TIERS}
TIERS_OF_TYPES = [
    (tier, kind, type) for tier, kind in TIERS_OF_KINDS for type in TYPES_OF_TIERS[tier]
]
# Those with a backward pass in float64.
EXACT_TIERS_OF_KINDS = [pair for pair in TIERS_OF_KINDS if "f64" in TYPES_OF_TIERS[pair[0]]]


def check_schedules(c: Case, type: str, tier: str, chunk_rows: int = 0, schedules=SCHEDULES):
    assert supported(tier, c, type)
    contexts = {s: running(s, tier, chunk_rows) for s in schedules}
    results = check_runs(c, TYPES[type], contexts)
    first = next(iter(results.values()))
    for schedule, result in results.items():
        for name, value in result.items():
            assert torch.equal(value, first[name]), f"{schedule}: {name} has other bits"


@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize(("tier", "kind", "type"), TIERS_OF_TYPES)
def test_schedules(tier, kind, type, D):
    check_schedules(case(kind, T=4, B=5, I=3, H=9, D=D), type, tier)


@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize(("tier", "kind", "type"), TIERS_OF_TYPES)
def test_ragged(tier, kind, type, D):
    """Sequences end in the middle of a tile of rows, at its edge, and one by one."""
    for batch_sizes in ((6, 5, 5, 2, 1), (9, 8, 4, 4)):
        c = case(kind, I=3, H=7, D=D, batch_sizes=batch_sizes)
        check_schedules(c, type, tier, schedules=("forward", "greedy", "random 1"))


@pytest.mark.parametrize("kind", CELLS)
def test_tensor_cores_of_several_blocks(kind):
    """More units than one block takes: h and partial sums go from block to block."""
    for sizes in ({"T": 4, "B": 18}, {"batch_sizes": (5, 3, 1)}):
        c = case(kind, I=3, H=136, D=2 if "T" not in sizes else 1, **sizes)
        check_schedules(c, "bf16", "mma", schedules=("reverse", "greedy", "random 1"))


# Every kernel of the block tier in float32: multiprocessors for which blocks have so many rows, and H
# of each kernel's size, the largest with all of W_hh in registers, and not.
@pytest.mark.parametrize(("rows", "multiprocessors"), ((1, 10), (2, 6), (4, 2)))
@pytest.mark.parametrize(
    ("H", "size"), ((1, 48), (20, 48), (48, 48), (49, 96), (96, 96), (97, 128), (121, 128))
)
@pytest.mark.parametrize("kind", CELLS)
def test_block_kernels(kind, H, size, rows, multiprocessors):
    with device(80, multiprocessors):
        for D, sizes in ((1, {"T": 3, "B": 9}), (2, {"batch_sizes": (5, 4, 2)})):
            c = case(kind, I=3, H=H, D=D, **sizes)
            B = c.B if c.batch_sizes is None else c.batch_sizes[0]
            for backward in (False, True):
                assert host.block_shape(kind, "f32", B, H, D, backward)[:2] == (rows, size)
            check_schedules(c, "f32", "block", schedules=("greedy", "random 1"))


# What a launch of the tensor-core kernels can look like: multiprocessors, B, H, and then of the LSTM
# forward and backward the rows of a block, blocks, groups, splits, and whether shared memory has to
# hold fragments of W_hh.
MMA_PATHS = {
    "one block, 8 rows": (8, 9, 70, (8, 1, 9, 1, True), (8, 1, 9, 1, False)),
    "one block, 8 rows, fragments": (8, 5, 128, (8, 1, 16, 1, True), (8, 1, 16, 1, True)),
    "one block, 8 rows, splits": (8, 9, 40, (8, 1, 5, 2, False), (8, 1, 5, 2, False)),
    "one block, 16 rows": (1, 9, 70, (16, 1, 9, 1, True), (16, 1, 9, 1, True)),
    "one block, 16 rows, splits": (1, 17, 40, (16, 1, 5, 2, False), (16, 1, 5, 2, False)),
    "one block, a short sum": (1, 9, 9, (16, 1, 2, 1, False), (16, 1, 2, 4, False)),
    "blocks of one group": (17, 9, 136, (16, 17, 1, 8, False), (16, 17, 1, 16, False)),
    "blocks of one group, 8 rows": (17, 5, 136, (8, 17, 1, 8, False), (8, 17, 1, 16, False)),
    "blocks of some groups": (6, 9, 133, (16, 6, 3, 4, True), (16, 6, 3, 4, False)),
    "blocks with a long sum": (3, 9, 144, (16, 3, 6, 2, True), (16, 3, 6, 2, True)),
    "blocks with a long sum, 8 rows": (6, 5, 272, (8, 6, 6, 2, True), (8, 6, 6, 2, True)),
    "blocks, one warp a group": (2, 9, 144, (16, 2, 9, 1, True), (16, 2, 9, 1, True)),
    "blocks, one warp a group, 8 rows": (2, 5, 144, (8, 2, 9, 1, True), (8, 2, 9, 1, True)),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("path", MMA_PATHS)
def test_mma_paths(path, kind):
    multiprocessors, B, H, *expected = MMA_PATHS[path]
    with device(80, multiprocessors):
        for backward in (False, True):
            *shape, fragments = host.mma_shape("lstm", "bf16", B, H, 1, backward)
            assert (*shape, fragments > 0) == expected[backward]
        for sizes in ({"T": 3, "B": B}, {"batch_sizes": (B, B - 1, 1)}):
            # A seed without a sum that rounding moves past relu's kink.
            c = case(kind, I=3, H=H, seed=2, **sizes)
            check_schedules(c, "bf16", "mma", schedules=("greedy", "random 1"))


# What a launch of the grid kernels can look like: multiprocessors, shared memory, H, and then
# blocks of a direction, units of a block, columns of h forward, and backward the threads that share
# the sum of what blocks sent.
GRID_PATHS = {
    "one unit a block": (40, 0, 40, 40, 1, 40, 5),
    "tiles of units, the last not full": (12, 0, 35, 12, 3, 40, 2),
    "one tile, shared by warps": (45, 0, 133, 45, 3, 136, 6),
    "warps that share tiles": (44, 0, 264, 44, 6, 264, 6),
    "pieces of h": (8, 8000, 40, 8, 5, 24, 1),
    "pieces of h without vectors": (8, 8000, 39, 8, 5, 24, 1),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("path", GRID_PATHS)
def test_grid_paths(path, kind):
    multiprocessors, shared, H, blocks, units, piece, sources = GRID_PATHS[path]
    with device(80, multiprocessors, shared):
        forward, backward = (host.grid_shape(kind, "f32", 9, H, 1, b) for b in (False, True))
        # A cell of fewer gates leaves more room.
        assert forward[:2] == (blocks, units) and (forward[2] == piece or kind != "lstm")
        assert backward == (blocks, units, backward[2], sources)
        for sizes in ({"T": 3, "B": 9}, {"batch_sizes": (9, 8, 1)}):
            c = case(kind, I=3, H=H, seed=2, **sizes)
            check_schedules(c, "f32", "grid", schedules=("greedy", "random 1"))


@pytest.mark.parametrize("H", (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 70))
@pytest.mark.parametrize(("tier", "kind"), TIERS_OF_KINDS)
def test_sizes(tier, kind, H):
    for B, T in ((1, 1), (3, 2), (4, 3), (9, 2), (15, 1), (17, 2)):
        c = case(kind, T=T, B=B, I=5, H=H, bias=B != 4)
        type = TYPES_OF_TIERS[tier][0]
        if H <= 33 or supported(tier, c, type):
            check_schedules(c, type, tier, schedules=("greedy", "random 1"))


@pytest.mark.parametrize("H", (127, 128, 129))
@pytest.mark.parametrize(("tier", "kind"), TIERS_OF_KINDS)
def test_large_sizes(tier, kind, H):
    """Around what one block has room for."""
    for sizes in ({"B": 3, "T": 2}, {"B": 17, "T": 1}, {"batch_sizes": (16, 15, 1)}):
        c = case(kind, I=5, H=H, **sizes)
        type = TYPES_OF_TIERS[tier][0]
        if tier != "block":
            assert supported(tier, c, type)
        if supported(tier, c, type):
            check_schedules(c, type, tier, schedules=("random 1",))


# In 16 bits rounding moves sums past relu's kink, and gradients with them.
@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize(
    ("tier", "kind"), [pair for pair in TIERS_OF_KINDS if pair != ("mma", "rnn_relu")]
)
def test_any_layer(tier, kind, data):
    """Whatever the sizes, type, device and schedule, the tier is right or says that it can't."""
    draw = data.draw
    H = draw(st.integers(2, 72), "H")
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=20), "lengths")
    ragged = draw(st.booleans(), "ragged")
    batch_sizes = tuple(sum(n > t for n in lengths) for t in range(max(lengths)))
    c = case(
        kind,
        H=H,
        I=draw(st.integers(1, 9), "I"),
        T=max(lengths),
        B=len(lengths),
        D=draw(st.sampled_from((1, 2)), "D"),
        bias=draw(st.booleans(), "bias"),
        batch_sizes=batch_sizes if ragged else None,
        seed=draw(st.integers(0, 99), "seed"),
    )
    types = TYPES_OF_TIERS[tier][:2] if kind == "rnn_relu" else TYPES_OF_TIERS[tier]
    type = draw(st.sampled_from(types), "type")
    schedule = draw(st.sampled_from(tuple(SCHEDULES)), "schedule")
    chunk_rows = draw(st.sampled_from((0, 1, 7, 30)), "rows of a chunk")
    with device(
        80, draw(st.integers(1, 9), "multiprocessors"), draw(st.sampled_from((0, 48 << 10)))
    ):
        if supported(tier, c, type):
            check_runs(c, TYPES[type], {schedule: running(schedule, tier, chunk_rows)})
        else:
            with running(schedule, tier), pytest.raises(RuntimeError, match="was forced"):
                gradients(lambda *t: c.call(functional, *t), c.arguments(TYPES[type]))


def off_by_one(t: torch.Tensor) -> torch.Tensor:
    """The same numbers, contiguous, one element past an address that vectors could be loaded from."""
    return t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)


@pytest.mark.parametrize(("tier", "kind"), TIERS_OF_KINDS)
def test_odd_addresses(tier, kind):
    with device(80, 6):
        c = case(kind, T=3, B=5, I=8, H=136 if tier == "mma" else 32, D=1)
        type = TYPES_OF_TIERS[tier][0]
        if tier == "mma":
            assert host.mma_shape(kind, type, c.B, c.H, c.D, False)[1] > 1
        arguments = c.arguments(TYPES[type])
        with running("random 1", tier):
            plain = gradients(lambda *t: c.call(functional, *t), arguments)
            odd = gradients(lambda *t: c.call(functional, *map(off_by_one, t)), arguments)
        for name, value in plain.items():
            assert torch.equal(value, odd[name]), name


def test_more_rows_than_a_grid_is_wide():
    """What CUDA limits to 65535 blocks is not what rows are spread over."""
    for tier in ("stepwise", "block"):
        c = Case("gru", T=1, B=66_000, I=1, H=1)
        with running("forward", tier):
            check_runs(c, torch.float32, {tier: running("forward", tier)})
    assert host.supports("mma", "gru", "bf16", 65535 * 16, 8, 8, 1, False)
    assert not host.supports("mma", "gru", "bf16", 65536 * 16, 8, 8, 1, False)


@pytest.mark.parametrize("ragged", (False, True), ids=("padded", "ragged"))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize(("tier", "kind"), TIERS_OF_KINDS)
def test_chunks(tier, kind, D, ragged):
    """Chunks of one step, of a few, and one that the last does not fill."""
    sizes = {"batch_sizes": (5, 5, 3, 2, 2, 1, 1)} if ragged else {"T": 7, "B": 5}
    for chunk_rows in (5, 11):
        c = case(kind, I=3, H=6, D=D, **sizes)
        type = TYPES_OF_TIERS[tier][-1 if tier == "mma" else 1]
        check_schedules(c, type, tier, chunk_rows, ("forward", "greedy", "random 2"))


@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize(
    ("tier", "kind"), [pair for pair in TIERS_OF_KINDS if pair[0] == "stepwise"]
)
def test_runs_of_rows(tier, kind, D):
    """Bias gradients of more rows than are summed at once, in one chunk and in chunks of two runs."""
    c = case(kind, T=3, B=700, I=2, H=9, D=D)
    # In 16 bits rounding moves sums past relu's kink.
    types = ("f64",) if kind == "rnn_relu" else ("f64", "f16")
    for type, chunk_rows in itertools.product(types, (0, 1400)):
        check_schedules(c, type, tier, chunk_rows, ("greedy", "random 1"))


@pytest.mark.parametrize("batch_sizes", (None, (3, 2, 2, 1)), ids=("padded", "ragged"))
@pytest.mark.parametrize("schedule", ("greedy", "random 1"))
@pytest.mark.parametrize(("tier", "kind"), EXACT_TIERS_OF_KINDS)
def test_gradcheck(tier, kind, schedule, batch_sizes):
    c = case(kind, T=3, B=3, I=2, H=3, D=2, batch_sizes=batch_sizes, seed=3)
    leaves = [t.requires_grad_() for t in c.arguments().values()]
    with running(schedule, tier):
        assert torch.autograd.gradcheck(lambda *t: c.call(functional, *t), leaves)


@pytest.mark.parametrize("save", ("gates", "states"))
@pytest.mark.parametrize(
    ("tier", "kind"), [pair for pair in EXACT_TIERS_OF_KINDS if pair[0] != "stepwise"]
)
def test_step_gradients(tier, kind, save):
    """Gradients by every h_t and c_t too are the stepwise tier's."""
    c = case(kind, T=4, B=5, I=3, H=6, D=2, batch_sizes=(5, 4, 2, 1))
    arguments = c.arguments()
    input, h_0, c_0 = arguments.pop("input"), arguments.pop("h_0"), arguments.pop("c_0", None)
    tensors = (input, c.sizes(), h_0, c_0, list(arguments.values()))
    found = {}
    for name in ("stepwise", tier):
        with running("random 3", name):
            results = ops.FORWARD[c.cell](*tensors, save)
            ones = [torch.ones_like(t) if t.numel() else None for t in results[:3]]
            grads = ops.BACKWARD[c.cell](
                *ones, *tensors, results[0], *results[3:], True, True, True, True
            )
            found[name] = [*grads[:3], *grads[3], *grads[4:]]
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b)
    assert found[tier][-2].shape == (2, 12, c.P or c.H)


# Operators of torch that launch nothing on a GPU.
NO_LAUNCH = {"empty", "view", "t", "transpose", "as_strided", "select", "narrow", "slice"}


def launches_of(function, *arguments) -> tuple[object, int, Counter]:
    """What an operator returns, how many kernels it launched and what it asked of torch beside
    views and memory."""
    host.take_counts()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = function(*arguments)
    asked = [
        e.name.removeprefix("aten::")
        for e in profile.events()
        if e.cpu_parent and e.cpu_parent.name.startswith("seqkern::")
    ]
    return result, host.take_counts()[0], Counter(n for n in asked if n not in NO_LAUNCH)


@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize(("tier", "cell"), [pair for pair in TIERS_OF_KINDS if pair[1] in CELLS])
def test_launches(tier, cell, bias, D):
    """As few as the page says, products alone from torch, whatever the number of directions. In 16 bits
    torch's CPU products convert, and the kernels are counted alone."""
    c = Case(cell, T=9, B=3, I=2, H=5, D=D, bias=bias)
    gru, steps = cell == "gru", 9 if tier == "stepwise" else 1
    types = ("f32", "f16") if tier != "mma" else ("f16",)
    for type, save in itertools.product(types, ("gates", "states")):
        arguments = c.arguments(TYPES[type])
        input, h_0, c_0 = arguments.pop("input"), arguments.pop("h_0"), arguments.pop("c_0", None)
        tensors = (input, None, h_0, c_0, list(arguments.values()))
        with running("forward", tier):
            results, kernels, torchs = launches_of(ops.FORWARD[cell], *tensors, save)
            products = D * (1 + (steps if tier == "stepwise" else 0))
            assert kernels == 1 + steps
            assert type == "f16" or torchs == {"mm": products}

            ones = [torch.ones_like(t) if t.numel() else None for t in results[:3]]
            saved = (results[0], *results[3:])
            needs = (True, True, True, False)
            _, kernels, torchs = launches_of(ops.BACKWARD[cell], *ones, *tensors, *saved, *needs)
            again = save == "states" and cell in ("lstm", "gru")
            products = D * (3 + 2 * again + (steps if tier == "stepwise" else 0))
            # Both directions' products of the input's gradient meet in one.
            expected = {"mm": products - (D - 1)} | ({"addmm": 1} if D == 2 else {})
            finish = bias or gru or type == "f16"
            assert kernels == 1 + again * D + steps + finish
            assert type == "f16" or torchs == expected


@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier != "stepwise"])
def test_unsupported_tier(tier):
    c = Case("lstm", P=2)
    with running("forward", tier), pytest.raises(RuntimeError, match=f"'{tier}' was forced"):
        c.call(functional, *c.arguments(torch.float32).values())


# Each tier as the planner chooses it on devices of several sizes.
@pytest.mark.parametrize(
    ("capability", "multiprocessors", "shared"),
    [(75, 40, 64 << 10), (80, 108, 163 << 10), (89, 128, 99 << 10), (90, 132, 227 << 10)],
)
@pytest.mark.parametrize("type", ("f32", "bf16"))
@pytest.mark.parametrize("cell", CELLS)
def test_devices(cell, type, capability, multiprocessors, shared):
    with device(capability, multiprocessors, shared):
        check_runs(
            Case(cell, T=3, B=3, I=4, H=20, D=2), TYPES[type], {"planned": running("random 1")}
        )


@pytest.mark.parametrize(
    ("tier", "kind", "type"), [each for each in TIERS_OF_TYPES if each[2] in ("f32", "f16")]
)
def test_small_layers(tier, kind, type):
    """What runs under the sanitizers: three blocks of a grid in each direction, the last one with
    fewer units."""
    # Multiples of 8 are what the mma tier copies asynchronously.
    H = 24 if tier == "mma" else 5
    c = case(kind, I=2, H=H, D=2, batch_sizes=(5, 4, 4, 1))
    # The mma tier's one block, and where that has too little shared memory, three.
    for shared in (0, 6 << 10) if tier == "mma" else (0,):
        with device(80, 6, shared):
            results = []
            for schedule in ("greedy", "random 1"):
                with running(schedule, tier):
                    arguments = c.arguments(TYPES[type])
                    results.append(gradients(lambda *t: c.call(functional, *t), arguments))
        for name, value in results[0].items():
            assert torch.equal(value, results[1][name]) and value.isfinite().all()


@pytest.mark.parametrize("cell", CELLS)
def test_mma_of_several_blocks(cell):
    """Where one block has too few threads for all units, blocks exchange h."""
    c = Case(cell, I=2, H=136, batch_sizes=(5, 4, 4, 1))
    with device(80, 6):
        host.take_counts()
        check_schedules(c, "bf16", "mma")
        assert host.take_counts()[1] > 0


def test_nan_stays_in_its_row():
    """Rows share tiles of tensor cores and blocks, and nothing else."""
    for tier, cell in itertools.product(TIERS, CELLS):
        c = Case(cell, T=3, B=6, I=2, H=5)
        arguments = c.arguments(TYPES[TYPES_OF_TIERS[tier][0]])
        with running("greedy", tier):
            clean = gradients(lambda *t, c=c: c.call(functional, *t), arguments)
            arguments["input"][1, 4] = float("nan")
            dirty = gradients(lambda *t, c=c: c.call(functional, *t), arguments)
        others = [0, 1, 2, 3, 5]
        for name in ("output", "h_n", "grad_input", "grad_h_0"):
            assert torch.equal(clean[name][:, others], dirty[name][:, others]), (tier, cell, name)
        assert dirty["output"][1:, 4].isnan().all()
