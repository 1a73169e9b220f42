"""The benchmark harness: what it times, how, and what it says about it."""

import io
import json
import math

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import (
    check,
    compare,
    device,
    environment,
    memory,
    pair,
    peers,
    report,
    roofline,
    run,
)
from benchmarks.cases import CELLS, GRIDS, LAYERS, MODES, Case, grid
from benchmarks.progress import Progress
from benchmarks.results import Record, Results
from benchmarks.roofline import Rates
from benchmarks.table import duration, line, summary
from benchmarks.timing import geometric_mean, interleave, quartiles, repetitions, speedups

CASE = Case("GRU", "train", 3, 2, 8, threads=1)


@pytest.fixture(autouse=True)
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def record(case=CASE, theirs=(4.0, 4.0, 4.0), ours=(1.0, 2.0, 4.0), **options) -> Record:
    rates = {"product": 1e11, "read": 1e11}
    return Record(case, {"torch.nn": list(theirs), "seqkern": list(ours)}, 0.5, rates, **options)


# cases


@pytest.mark.parametrize("name", GRIDS)
def test_grids_name_each_case_once(name):
    cases = grid(name, [2, 1])
    assert len(cases) == len({case.name for case in cases})
    assert {case.threads for case in cases} == {1, 2}


def test_first_grid_holds_the_promised_speedups():
    targets = {(c.cell, c.B, c.H): c.at_least for c in grid("first", [2]) if c.mode == "train"}
    assert {key for key in targets if key[0] == "GRU"} == {
        ("GRU", 32, 128),
        ("GRU", 8, 256),
        ("GRU", 1, 128),
    }
    assert all(least == (2.0 if key[0] == "GRU" else 1.0) for key, least in targets.items())
    lstm = {(b, h) for cell, b, h in targets if cell == "LSTM"}
    assert lstm == {(b, h) for b in (1, 8, 32, 64) for h in (128, 256, 512)}


def test_larger_grids_keep_the_targets_of_the_first():
    standard, full = grid("standard", [2]), grid("full", [2])
    assert set(grid("first", [2])) <= set(standard) <= set(full)
    assert {case.cell for case in standard} == {*LAYERS, *CELLS}
    assert {case.mode for case in standard} == set(MODES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("CNN", "train", 1, 1, 1), "cell must be one of .*got 'CNN'"),
        (("GRU", "test", 1, 1, 1), "mode must be one of .*got 'test'"),
        (("GRU", "train", 1, 1, 1, "int8"), "dtype must be one of .*got 'int8'"),
        (("GRUCell", "train", 2, 1, 1), "GRUCell takes one step"),
        (("GRU", "step", 2, 1, 1), "mode step takes T 1"),
        (
            ("GRU", "infer", 2, 1, 1, "float32", 1, 1, False, False, "states"),
            "save states takes training",
        ),
    ],
)
def test_cases_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        Case(*values)


def test_packed_lengths_fall_evenly_and_leave_half_out():
    case = Case("GRU", "train", 100, 10, 8, packed=True)
    assert case.lengths == [100, 90, 80, 70, 60, 50, 40, 30, 20, 10]
    assert case.rows == 550
    assert Case("GRU", "train", 100, 10, 8).rows == 1000
    assert Case("GRU", "train", 1, 4, 8, packed=True).lengths == [1, 1, 1, 1]


def test_case_survives_json():
    assert Case.from_dict(json.loads(json.dumps(CASE.as_dict()))) == CASE


# timing


class Clock:
    """Time passes only where `advance` says."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time

    def takes(self, seconds, log=None, name=None):
        def function():
            self.time += seconds
            if log is not None:
                log.append(name)

        return function


@pytest.mark.parametrize("seconds", [1e-6, 3e-5, 0.0039, 0.01])
def test_repetitions_reach_the_shortest_timing_but_not_far_past_it(seconds):
    clock = Clock()
    repeat = repetitions(clock.takes(seconds), 0.004, clock)
    assert repeat * seconds >= 0.004
    assert repeat == 1 or repeat * seconds <= 0.004 * 1.5 + seconds


def test_interleave_takes_turns():
    clock, log = Clock(), []
    functions = {"a": clock.takes(0.1, log, "a"), "b": clock.takes(0.2, log, "b")}
    rounds = interleave(functions, budget=3.0, fewest=2, most=50, now=clock)
    assert "".join(log[-20:]) == "ab" * 10
    assert rounds["a"] == pytest.approx([0.1] * 10)
    assert rounds["b"] == pytest.approx([0.2] * 10)


@pytest.mark.parametrize(("budget", "count"), [(0.0, 3), (1e9, 7)])
def test_interleave_keeps_to_its_bounds(budget, count):
    clock = Clock()
    rounds = interleave({"a": clock.takes(1.0)}, budget, fewest=3, most=7, now=clock)
    assert len(rounds["a"]) == count


def test_statistics():
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert quartiles([4.0, 1.0, 2.0, 5.0, 3.0]) == (2.0, 3.0, 4.0)
    assert speedups([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="shorter"):
        speedups([1.0, 2.0], [1.0])


# roofline


def test_roofline_by_hand_when_arithmetic_limits():
    case = Case("LSTM", "infer", 10, 32, 64, threads=2)
    product = 2 * 10 * 32 * 64 * 256  # input and recurrent product are equally large
    assert roofline.flops(case) == 2 * product
    assert roofline.seconds(case, Rates(1e9, 1e15)) == pytest.approx(2 * product / 1e9)


def test_roofline_by_hand_when_reading_limits():
    case = Case("GRU", "infer", 10, 1, 64, threads=2)
    share = 3 * 64 * 64 * 4 / 2
    assert roofline.share(case) == share
    expected = share / 1e6 + 10 * share / 1e6  # W_ih is read once, W_hh every step
    assert roofline.seconds(case, Rates(1e15, 1e6)) == pytest.approx(expected)


def test_roofline_of_training_adds_the_way_back_and_the_weight_gradients():
    infer, train = (Case("RNN", mode, 10, 32, 64) for mode in ("infer", "train"))
    assert roofline.flops(train) == 3 * roofline.flops(infer)
    rates = Rates(1e9, 1e15)
    assert roofline.seconds(train, rates) == pytest.approx(3 * roofline.seconds(infer, rates))


def test_roofline_counts_layers_directions_and_lengths():
    rates = Rates(1e9, 1e15)

    def seconds(**options):
        return roofline.seconds(Case("RNN", "infer", 8, 4, 16, **options), rates)

    assert seconds(layers=3) == pytest.approx(3 * seconds())
    assert seconds(bidirectional=True) == pytest.approx(2 * seconds())
    # the second layer's input is twice as wide: 2 + 2 parts, then 4 + 2
    assert seconds(layers=2, bidirectional=True) == pytest.approx(5 * seconds())
    assert seconds(packed=True) == pytest.approx(seconds() * 20 / 32)


def test_measured_rates_are_plausible():
    rates = roofline.measure(CASE)
    assert 1e8 < rates.product < 1e14
    assert 1e8 < rates.read < 1e13


# peers and their results

SMALL = [
    *(
        Case(cell, mode, 1 if mode == "step" else 5, 3, 8, threads=1)
        for cell in LAYERS
        for mode in MODES
    ),
    *(Case(cell, mode, 1, 3, 8, threads=1) for cell in CELLS for mode in ("infer", "train")),
    *(
        Case(cell, "train", 5, 3, 8, threads=1, layers=2, bidirectional=True, packed=packed)
        for cell in LAYERS
        for packed in (False, True)
    ),
    *(Case(cell, "train", 5, 3, 8, "float64", threads=1) for cell in LAYERS),
    *(Case(cell, "infer", 5, 3, 8, "bfloat16", threads=1) for cell in LAYERS),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_results_agree(case):
    torch.set_num_threads(1)
    runs = {name: peers.make_run(name, case) for name in ("torch.nn", "seqkern")}
    assert check.disagreements(case, runs) == {}
    if case.mode == "train":
        states = 3 if "LSTM" in case.cell else 2
        parameters = 4 * case.layers * (2 if case.bidirectional else 1)
        if case.cell in CELLS:
            states -= 1
        assert len(runs["seqkern"]()) == states + 1 + parameters


@pytest.mark.parametrize("cell", LAYERS)
def test_python_loop_agrees(cell):
    case = Case(cell, "infer", 100, 2, 8, threads=1)
    assert peers.takes("python loop", case)
    runs = {name: peers.make_run(name, case) for name in ("torch.nn", "python loop")}
    assert check.disagreements(case, runs) == {}


@pytest.mark.parametrize("options", [{}, {"layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("cell", LAYERS)
def test_onnxruntime_agrees(cell, options):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    case = Case(cell, "infer", 5, 3, 8, threads=1, **options)
    assert peers.takes("onnxruntime", case)
    runs = {name: peers.make_run(name, case) for name in ("torch.nn", "onnxruntime")}
    assert len(runs["onnxruntime"]()) == len(runs["torch.nn"]())
    assert check.disagreements(case, runs) == {}


@pytest.mark.parametrize("layers", (1, 2))
@pytest.mark.parametrize("cell", LAYERS)
def test_steps_agree_and_keep_their_state(cell, layers):
    case = Case(cell, "step", 1, 3, 8, threads=1, layers=layers)
    names = [name for name in peers.available() if peers.takes(name, case)] + [peers.OURS]
    runs = {name: peers.make_run(name, case) for name in names}
    assert check.disagreements(case, runs) == {}
    expected = [runs["torch.nn"]()[0].clone() for _ in range(3)]
    assert not torch.equal(expected[0], expected[1])
    for name in names[1:]:
        for output in expected:
            torch.testing.assert_close(runs[name]()[0], output, msg=name)


def test_saved_states_are_timed_beside_saved_gates():
    case = Case("LSTM", "train", 3, 2, 8, threads=1, save="states")
    assert case.name == "LSTM train T3 B2 H8 f32 states 1thr"
    assert peers.takes(peers.SAVE_GATES, case) and not peers.takes(peers.SAVE_GATES, CASE)
    runs = {name: peers.make_run(name, case) for name in ("torch.nn", peers.SAVE_GATES, peers.OURS)}
    assert check.disagreements(case, runs) == {}
    held = {name: memory.held_bytes(function) for name, function in runs.items()}
    assert held[peers.OURS] < held[peers.SAVE_GATES]
    times = Record(case, {name: [1.0, 1.0] for name in runs}, 0.5, {"product": 1e11, "read": 1e11})
    names = {name for name, *_ in summary([times])}
    assert names == {
        "LSTM train padded states float32 1 threads, over torch.nn",
        "LSTM train padded states float32 1 threads, over seqkern, gates",
    }


def test_two_processes_at_once(capsys):
    assert command.main(["pair", "--only", "RNN train T100 B1 ", "--seconds", "0.05"]) == 0
    name, mean = capsys.readouterr().out.splitlines()[1:]
    assert name.startswith("RNN train T100 B1 H128 f32 2thr") and mean.startswith("geometric mean")


def test_a_process_of_a_pair_that_fails_is_named():
    impossible = Case("GRU", "train", 3, 2, 0, threads=1)
    with pytest.raises(RuntimeError, match="torch.nn, GRU train T3 B2 H0 f32 1thr: a process"):
        pair.calls_per_second("torch.nn", impossible, 0.01)


def test_peers_take_only_what_they_have():
    assert not peers.takes("onnxruntime", CASE)
    assert not peers.takes("onnxruntime", Case("GRU", "infer", 5, 3, 8, packed=True))
    assert not peers.takes("onnxruntime", Case("GRU", "infer", 5, 3, 8, "float64"))
    assert not peers.takes("python loop", Case("GRU", "infer", 100, 3, 8, layers=2))
    assert peers.takes("torch.nn", CASE)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda results: [results[0] * 1.001, *results[1:]], "result 0: error"),
        (lambda results: [*results[:-1], results[-1] * torch.nan], "error nan"),
        (lambda results: results[:-1], "6 results, expected 7"),
        (
            lambda results: [results[0][1:], *results[1:]],
            "result 0: torch.Size([2, 2, 8]) instead of torch.Size([3, 2, 8])",
        ),
    ],
)
def test_wrong_results_are_found(spoil, message):
    right = peers.make_run("torch.nn", CASE)
    found = check.disagreements(CASE, {"torch.nn": right, "seqkern": lambda: spoil(right())})
    assert list(found) == ["seqkern"]
    assert message in found["seqkern"]


def test_wrong_results_are_not_timed(monkeypatch):
    real = peers.make_run

    def make_run(name, case):
        if name != "seqkern":
            return real(name, case)
        return lambda: [tensor + 1 for tensor in real("torch.nn", case)()]

    monkeypatch.setattr(run, "make_run", make_run)
    monkeypatch.setattr(run, "interleave", lambda *_: pytest.fail("was timed"))
    with pytest.raises(run.WrongResult, match="GRU train T3 B2 H8 f32 1thr: seqkern: result"):
        run.time_case(CASE, ["torch.nn"], 0.01)


# memory


def test_held_bytes_counts_saved_storages_once_and_not_the_callers():
    x = torch.ones(1000, requires_grad=True)
    w = torch.ones(1000, requires_grad=True)

    def step():
        y = x * w  # saves both, which the caller holds
        z = y.exp()  # saves z
        return torch.autograd.grad((z * z).sum(), [x, w])  # saves z again

    step.sources = [x, w]
    assert memory.held_bytes(step) == 4000


def test_memory_of_a_step_is_that_of_its_tensors():
    case = Case("LSTM", "train", 64, 32, 128, threads=1)
    output = 64 * 32 * 128 * 4
    for name in ("torch.nn", "seqkern"):
        found = memory.measure(name, case)
        assert 4 * output < found["held"] < 30 * output
        assert 4 * output < found["peak"] < 60 * output


def test_memory_is_for_training_only_and_errors_come_through():
    assert memory.measure("torch.nn", Case("LSTM", "infer", 4, 2, 8)) is None
    broken = Case("LSTM", "train", 4, 2, 8)
    object.__setattr__(broken, "H", 0)
    with pytest.raises(RuntimeError, match="memory of torch.nn, LSTM train T4 B2 H0.*ValueError"):
        memory.measure("torch.nn", broken)


# results, table, comparison, report


def test_record_statistics():
    found = record()
    assert found.speedup() == (1.5, 2.0, 3.0)
    assert found.median("seqkern") == 2.0
    assert found.share() == 0.25
    assert not found.missed
    assert record(Case("GRU", "train", 3, 2, 8, at_least=2.5)).missed
    assert not record(Case("GRU", "train", 3, 2, 8, at_least=2.0)).missed


def test_results_come_back(tmp_path):
    weighed = record(memory={"torch.nn": {"held": 1, "peak": 2}})
    results = Results({"cpu": "x"}, {CASE.name: weighed})
    results.save(tmp_path / "new" / "a.json")
    assert Results.load(tmp_path / "new" / "a.json") == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), ("{", "is not JSON"), ("[]", "not written by"), ("{}", "not written")],
)
def test_unusable_results_say_why(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=message):
        Results.load(path)


def test_results_of_pytest_benchmark_are_read(tmp_path):
    """Cases without torch.nn or seqkern are left out: there is nothing to compare."""
    alone = {**CASE.as_dict(), "T": 7}
    extra = {"roofline": 0.5, "rates": {"product": 1e11, "read": 1e11}}
    times = [("torch.nn", 2.0, CASE.as_dict()), ("seqkern", 1.0, CASE.as_dict())]
    benchmarks = [
        {
            "extra_info": {"implementation": name, **extra, **case},
            "stats": {"q1": 0.5 * seconds, "median": seconds, "q3": 2 * seconds},
        }
        for name, seconds, case in [*times, ("onnxruntime", 1.0, alone)]
    ]
    content = {"machine_info": {"cpu": {"brand_raw": "x"}}, "benchmarks": benchmarks}
    (tmp_path / "a.json").write_text(json.dumps(content))
    results = Results.load(tmp_path / "a.json")
    assert results.environment["cpu"] == "x"
    assert list(results.records) == [CASE.name]
    assert results.records[CASE.name] == record(theirs=(1.0, 2.0, 4.0), ours=(0.5, 1.0, 2.0))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-6, "1.23us"), (0.00045, "450us"), (0.0123, "12.3ms"), (0.9999, "1s"), (70, "70s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_line_and_summary():
    text = line(record(Case("GRU", "train", 3, 2, 8, at_least=2.5)))
    for expected in ("4s", "2s", "2.00x [1.50 3.00]", "25%", "MISSED (at least 2.5x)"):
        assert expected in text
    other = record(Case("GRU", "train", 9, 2, 8, threads=1), theirs=(16.0, 16.0, 16.0))
    name = "GRU train padded float32 1 threads, over torch.nn"
    assert summary([record(), other]) == [(name, 2, pytest.approx(4.0), 2.0)]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ((0.4, 0.5, 0.6), "faster"),
        ((4.0, 5.0, 6.0), "slower"),
        ((1.0, 1.8, 4.0), "same"),  # within the quartiles
        ((1.99, 1.99, 1.99), "same"),
    ],
)
def test_change_beyond_noise(ours, verdict):
    a, b = record(ours=(1.8, 2.0, 2.2)), record(ours=ours)
    assert compare.change(a, b).verdict == verdict


def test_a_tiny_change_is_none():
    a, b = record(ours=(2.0,) * 3), record(ours=(1.99,) * 3)
    assert compare.change(a, b).verdict == "same"


def test_compare_command(tmp_path, capsys):
    Results({"cpu": "x"}, {CASE.name: record(ours=(2.0,) * 3)}).save(tmp_path / "a.json")
    Results({"cpu": "y"}, {CASE.name: record(ours=(1.0,) * 3)}).save(tmp_path / "b.json")
    assert command.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    output = capsys.readouterr().out
    assert "differs: cpu: x and y" in output
    assert "faster: 1" in output
    assert "2.00x" in output
    Results({}, {}).save(tmp_path / "c.json")
    with pytest.raises(SystemExit, match="no case in common"):
        command.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")])


def test_report_command(tmp_path):
    pytest.importorskip("matplotlib")
    held = {"torch.nn": {"held": 4 * 2**20, "peak": 0}, "seqkern": {"held": 2**20, "peak": 0}}
    results = Results({"cpu": "x"})
    for T in (1, 10, 100):
        for H in (8, 16, 32):
            case = Case("GRU", "train", T, 2, H)
            results.records[case.name] = record(case, memory=held)
    results.save(tmp_path / "a.json")
    assert command.main(["report", str(tmp_path / "a.json"), "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "| GRU train T100 B2 H32 f32 2thr | 4s |  |  | 2s | 2.00x (1.50 to 3.00) |" in text
    assert "| GRU train T100 B2 H32 f32 2thr | 4.0 | 1.0 | 0.25 |" in text
    for name in ("time_against_T.png", "time_against_H.png", "speedup.png", "roofline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in text


def test_markdown_tables_have_as_many_cells_as_headers():
    text = report.table(["a", "b"], [[1, 2], [3, 4]])
    assert text == ["| a | b |", "| --- | --- |", "| 1 | 2 |", "| 3 | 4 |"]


# the command


@pytest.fixture
def fake_timing(monkeypatch):
    """Cases are not timed; the names of those that would have been come back."""
    timed = []

    def time_case(case, peers, budget, with_memory):
        timed.append(case.name)
        return record(case)

    monkeypatch.setattr(run, "time_case", time_case)
    return timed


ONE = ["--grid", "quick", "--only", "^LSTM train T100 B1 "]


def test_run_writes_and_resumes(tmp_path, capsys, fake_timing):
    output = ["--output", str(tmp_path / "a.json")]
    assert command.main([*ONE, *output]) == 0
    assert fake_timing == ["LSTM train T100 B1 H128 f32 2thr"]
    assert "2048^3 product, float32, 2 threads: 100 GF/s" in capsys.readouterr().out
    two = ["run", "--grid", "quick", "--only", "^LSTM train", *output, "--resume"]
    assert command.main(two) == 0
    assert fake_timing[1:] == ["LSTM train T100 B32 H128 f32 2thr"]
    assert len(Results.load(tmp_path / "a.json").records) == 2
    assert command.main([*ONE, *output]) == 0  # without --resume: anew
    assert len(fake_timing) == 3


def test_resuming_elsewhere_is_refused(tmp_path, fake_timing):
    Results({**environment.environment(), "cpu": "abacus"}).save(tmp_path / "a.json")
    with pytest.raises(SystemExit, match="made elsewhere .cpu: abacus and "):
        command.main([*ONE, "--output", str(tmp_path / "a.json"), "--resume"])


def test_missed_target_and_wrong_result_are_exit_status_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "time_case", lambda case, *_: record(case, ours=(9.0,) * 3))
    first = ["--grid", "first", "--only", "GRU", "--output", str(tmp_path / "a.json")]
    assert command.main(first) == 1
    assert "targets: 0 of 3 reached" in capsys.readouterr().out

    def wrong(*_):
        raise run.WrongResult("GRU: seqkern: result 0")

    monkeypatch.setattr(run, "time_case", wrong)
    assert command.main([*ONE, "--output", str(tmp_path / "b.json")]) == 1
    assert "WRONG RESULT: GRU: seqkern: result 0" in capsys.readouterr().out


def test_interrupted_run_keeps_what_is_done(tmp_path, capsys, monkeypatch):
    def time_case(case, *_):
        if case.B == 32:
            raise KeyboardInterrupt
        return record(case)

    monkeypatch.setattr(run, "time_case", time_case)
    path = tmp_path / "a.json"
    both = ["--grid", "quick", "--only", "^LSTM train", "--output", str(path)]
    assert command.main(both) == 130
    assert "go on with --resume" in capsys.readouterr().out
    assert len(Results.load(path).records) == 1


def test_a_case_is_really_timed():
    found = run.time_case(CASE, ["torch.nn"], 0.01)
    assert len(found.seconds["torch.nn"]) == len(found.seconds["seqkern"]) >= 5
    assert 0 < found.median("seqkern") < 10
    assert 0 < found.roofline < found.median("seqkern") * 100


def test_list_command_and_bad_options(capsys):
    assert command.main(["list", "--grid", "first", "--threads", "1"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == 15
    assert "GRU train T100 B32 H128 f32 1thr" in names
    with pytest.raises(SystemExit, match="no case of grid quick matches 'nothing'"):
        command.main(["list", "--grid", "quick", "--only", "nothing"])
    for bad in (["--threads", "0"], ["--grid", "huge"], ["--only", "("], ["--seconds", "-1"]):
        with pytest.raises(SystemExit) as stopped:
            command.main(["list", *bad] if bad[0] != "--seconds" else bad)
        assert stopped.value.code == 2
        assert bad[0] in capsys.readouterr().err


# cases of a GPU


def test_cases_of_a_gpu():
    cases = grid("standard", [2, 4], "cuda")
    assert {case.dtype for case in cases} == {"float16", "bfloat16", "float32", "float64"}
    assert all(case.device == "cuda" and case.at_least is None for case in cases)
    assert {case.dtype for case in cases if case.mode == "step"} == {"float32"}
    names = {case.name for case in cases}
    assert len(names) == len(cases) and "GRU train T100 B32 H128 f16 cuda" in names
    assert names.isdisjoint(case.name for case in grid("standard", [1]))
    assert {peer for peer in peers.PEERS if any(peers.takes(peer, c) for c in cases)} == {
        "torch.nn"
    }


@pytest.mark.parametrize(
    ("gpu", "built", "message"),
    [(False, True, "PyTorch sees no GPU"), (True, False, "has no CUDA kernels")],
)
def test_what_a_gpu_run_lacks(monkeypatch, gpu, built, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("seqkern.ops.CUDA_KERNELS", built)
    with pytest.raises(SystemExit, match=f"^--device cuda: .*{message}"):
        command.main(["--device", "cuda", "--grid", "quick"])


@pytest.fixture
def gpu_is_the_cpu(monkeypatch):
    """The path of a GPU's cases, their tensors on the CPU; what was synchronised comes back."""
    called = []
    monkeypatch.setattr(peers, "place", lambda value, case: value)
    monkeypatch.setattr(device, "synchronize", lambda: called.append("synchronize"))
    monkeypatch.setattr(device, "require", lambda _: None)
    monkeypatch.setattr(device, "environment", lambda name: {"gpu": "none"} if name else {})
    return called


def test_a_timing_ends_when_the_device_is_done(gpu_is_the_cpu):
    """Two readings of the clock around each timing, and the device waits before each."""
    case = Case("LSTM", "train", 3, 2, 8, device="cuda")
    log = gpu_is_the_cpu
    functions = {name: lambda name=name: log.append(name) for name in ("torch.nn", "seqkern")}
    interleave(functions, 1e-9, shortest=1e-9, now=device.clock(case))
    text = " ".join(log)
    assert "synchronize torch.nn synchronize synchronize seqkern synchronize" in text
    log.clear()
    interleave(functions, 1e-9, shortest=1e-9, now=device.clock(CASE))
    assert "synchronize" not in log


def test_a_gpu_run_from_command_to_report(tmp_path, capsys, gpu_is_the_cpu, monkeypatch):
    kept = [case for case in grid("quick", [1], "cuda") if case.mode == "train" and case.B == 1]
    small = [Case.from_dict({**case.as_dict(), "T": 3, "B": 2, "H": 8}) for case in kept]
    monkeypatch.setattr(command, "grid", lambda *_: small)
    output = tmp_path / "a.json"
    options = ["--device", "cuda", "--seconds", "0.001", "--output", str(output)]
    assert command.main(options) == 0, capsys.readouterr().out
    assert len(small) == 9 and gpu_is_the_cpu
    text = capsys.readouterr().out
    assert "gpu none" in text and "GRU train padded float16 cuda, over torch.nn" in text
    assert "GF/s" not in text
    results = Results.load(output)
    assert results.records.keys() == {case.name for case in small}
    for found in results.records.values():
        assert found.roofline is None and found.share() is None and found.memory is None
        assert len(found.seconds["torch.nn"]) == len(found.seconds["seqkern"]) >= 5
    pytest.importorskip("matplotlib")
    assert command.main(["report", str(output), "--output", str(tmp_path)]) == 0
    assert "RNN train T3 B2 H8 bf16 cuda" in (tmp_path / "report.md").read_text()


def test_environment_names_its_differences():
    here = environment.environment()
    assert {"cpu", "torch", "seqkern_capability", "commit"} <= set(here)
    assert environment.differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == [
        "b: 2 and None",
        "c: None and 3",
    ]


# progress


def test_progress_in_a_log_writes_one_line_every_tenth():
    stream = io.StringIO()
    bar = Progress(100, "work", stream, now=Clock())
    for done in range(1, 101):
        bar.update(done, "text")
    bar.clear()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[-1].startswith("work [########################] 100/100")


def test_progress_in_a_terminal_redraws_and_tells_the_time_left():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    clock, stream = Clock(), Terminal()
    bar = Progress(50, "work", stream, now=clock)
    for done in range(41, 46):  # resumed after 40
        clock.time += 10
        bar.update(done)
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().count("\r") == 5
    assert "45/50 0:50 (left 0:50)" in stream.getvalue()
    assert math.isclose(clock.time, 50)
