"""The next-word example: its parts, its checkpoint, and whole runs of a few steps."""

import os
import re
import signal

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import seqkern
from examples import checkpoint, next_word, report, text
from examples.model import NextWord, Trainer, continuation, perplexity, prompt_numbers
from examples.stop import stop_request

CELLS = ("LSTM", "GRU")


@pytest.fixture(scope="module")
def words():
    return text.load(500)


def small_model(namespace=seqkern, cell="LSTM", dropout=0.0):
    torch.manual_seed(3)
    return NextWord(namespace, cell, 500, 8, 2, dropout)


# text


def test_text_is_large_and_has_the_asked_vocabulary(words):
    assert len(words.vocabulary) == len(set(words.vocabulary)) == 500
    assert len(words.train) > 40_000
    assert len(words.valid) > 4_000
    assert int(words.train.max()) < 500
    assert (words.train == 0).float().mean() < 0.2  # mostly known words


def test_batch_pairs_each_word_with_the_next(words):
    inputs, targets = words.batch(7, length=12, batch=5, seed=1)
    assert inputs.shape == targets.shape == (12, 5)
    assert torch.equal(inputs[1:], targets[:-1])
    column = torch.cat([inputs[:, 2], targets[-1:, 2]])
    assert any(torch.equal(window, column) for window in words.train.unfold(0, 13, 1))


def test_batch_is_a_function_of_step_and_seed(words):
    first = words.batch(7, 12, 5, seed=1)[0]
    assert torch.equal(first, words.batch(7, 12, 5, seed=1)[0])
    assert not torch.equal(first, words.batch(8, 12, 5, seed=1)[0])
    assert not torch.equal(first, words.batch(7, 12, 5, seed=2)[0])


def test_readable_joins_punctuation():
    assert text.readable(["f", "(", "x", ")", ",", "then", "<p>", "if"]) == "f (x), then¶ if"


# model


@pytest.mark.parametrize("cell", CELLS)
def test_state_dict_loads_both_ways(cell):
    theirs, ours = small_model(nn, cell), small_model(seqkern, cell)
    numbers = torch.randint(500, (9, 3))
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.add_(1.0)
        target.load_state_dict(source.state_dict(), strict=True)
        torch.testing.assert_close(source(numbers)[0], target(numbers)[0])


@pytest.mark.parametrize("namespace", [nn, seqkern])
@pytest.mark.parametrize("cell", CELLS)
def test_step_on_the_cut_graph_is_an_ordinary_step(namespace, cell, words):
    """Adam's first step moves by the sign of the gradient: compare the gradients themselves."""
    inputs, targets = words.batch(0, 6, 4, seed=0)
    trainer, plain = Trainer(small_model(namespace, cell, 0.5), 0.1), small_model(nn, cell, 0.5)
    seen = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
    )
    loss = trainer.step(inputs, targets, seed=11)

    torch.manual_seed(11)
    expected = cross_entropy(plain(inputs)[0].flatten(0, 1), targets.flatten())
    expected.backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, msg=lambda m, name=name: name + m)


def test_step_counts_the_layers_within_the_step(words):
    trainer = Trainer(small_model(), 0.1)
    trainer.step(*words.batch(0, 6, 4, seed=0), seed=0)
    layers = trainer.forward_seconds[0] + trainer.backward_seconds[0]
    assert 0 < layers < trainer.step_seconds[0]


def test_perplexity_of_a_uniform_model_is_the_vocabulary(words):
    model = small_model()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    assert perplexity(model, words.valid) == pytest.approx(500, rel=1e-4)


def drawn(model, words, count=12, **options):
    options = {"temperature": 1.0, "top_k": 5, "seed": 0, **options}
    stream = continuation(model, words, "the value of", **options)
    return [next(stream) for _ in range(count)]


def test_continuation_follows_seed_and_top_k(words):
    model = small_model()
    nn.init.normal_(model.head.bias, std=3)
    assert drawn(model, words) == drawn(model, words)
    assert drawn(model, words) != drawn(model, words, seed=1)
    greedy = drawn(model, words, top_k=1)
    assert greedy == drawn(model, words, top_k=1, seed=1)
    assert greedy == drawn(model, words, top_k=500, temperature=1e-6)
    with torch.no_grad():
        logits, _ = model(torch.tensor(prompt_numbers(words, "the value of"))[:, None])
    logits[-1, 0, 0] = -torch.inf
    assert greedy[0] == words.vocabulary[logits[-1, 0].argmax()]


def test_continuation_never_says_unknown(words):
    model = small_model()
    with torch.no_grad():
        model.head.bias[0] = 100
    assert text.UNKNOWN not in drawn(model, words, 20, top_k=500)


def test_prompt_names_unknown_words(words):
    with pytest.raises(ValueError, match="not in the vocabulary: zebra, quagga"):
        prompt_numbers(words, "The zebra and quagga")
    with pytest.raises(ValueError, match="no word in the prompt"):
        prompt_numbers(words, "123")


# checkpoint

SETTING = {"size": 8, "seed": 0}


def test_checkpoint_comes_back(tmp_path):
    path = tmp_path / "folder" / "a.pt"
    runs = {"LSTM": {"weights": torch.arange(3.0), "losses": [1.5, 2.5]}}
    checkpoint.save(path, SETTING, runs)
    loaded = checkpoint.load(path, SETTING)
    assert torch.equal(loaded["LSTM"]["weights"], runs["LSTM"]["weights"])
    assert loaded["LSTM"]["losses"] == [1.5, 2.5]
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, SETTING, {"old": 1})

    def fail(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, SETTING, {"new": 1})
    assert checkpoint.load(path, SETTING) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def write_truncated(path):
    checkpoint.save(path, SETTING, {"LSTM": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "cannot read checkpoint .*No such file"),
        (lambda path: path.write_bytes(b""), "damaged or no checkpoint"),
        (lambda path: path.write_text("hello"), "damaged or no checkpoint"),
        (write_truncated, "damaged or no checkpoint"),
        (lambda path: torch.save({"model": {}}, path), "of another program"),
        (lambda path: torch.save([1, 2], path), "of another program"),
        (
            lambda path: checkpoint.save(path, {"size": 9, "seed": 0}, {}),
            r"made with another setting: size 9 \(now 8\)",
        ),
        (
            lambda path: torch.save({"format": checkpoint.FORMAT}, path),
            "damaged or no checkpoint",
        ),
    ],
    ids=["missing", "empty", "text", "truncated", "foreign", "list", "setting", "incomplete"],
)
def test_unusable_checkpoints_say_why(tmp_path, write, message):
    path = tmp_path / "a.pt"
    write(path)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(path, SETTING)


# whole runs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the program on tiny models; the table at the end has one length."""
    monkeypatch.setitem(next_word.BUDGETS, "small", (60, (1,), 0.001))

    def run(*arguments, cells=("GRU",)):
        tiny = ["--size", "8", "--words", "300", "--length", "10", "--batch", "4"]
        file = ["--checkpoint", str(tmp_path / "a.pt"), "--budget", "small", "--threads", "1"]
        return next_word.main([*tiny, *file, "--cells", *cells, *arguments])

    run.path = tmp_path / "a.pt"
    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def losses(path, cell="GRU"):
    runs = torch.load(path, weights_only=True)["runs"]
    return runs[cell]["torch.nn"]["losses"], runs[cell]["seqkern"]["losses"]


def test_run_trains_both_and_passes_its_checks(run, capsys):
    assert run("--steps", "6", cells=CELLS) == 0
    output = capsys.readouterr().out
    assert "7 checks passed, 0 failed" in output
    for expected in ("LSTM goes on from", "GRU goes on from", "words/s", "forward and backward"):
        assert expected in output
    for cell in CELLS:
        theirs, ours = losses(run.path, cell)
        assert len(theirs) == len(ours) == 6
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("impl", ("seqkern", "torch"))
def test_one_implementation_alone(run, impl, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert run("--steps", "3", "--impl", impl, "--interactive") == 0
    name = {"torch": "torch.nn"}.get(impl, impl)
    output = capsys.readouterr().out
    assert f"words/s in training ({name}, 3 steps)" in output
    assert f"[pass] GRU: the checkpoint of {name}'s model gives" in output
    assert "an empty line ends it" in output and "forward and backward" not in output
    assert torch.load(run.path, weights_only=True)["runs"]["GRU"].keys() == {name}
    with pytest.raises(SystemExit):
        run("--steps", "5", "--resume")
    assert "it was made with another --impl" in capsys.readouterr().err


def test_resumed_run_equals_an_uninterrupted_one(run):
    assert run("--steps", "6", "--dropout", "0.5") == 0
    whole = losses(run.path)
    assert run("--steps", "3", "--dropout", "0.5") == 0
    assert losses(run.path)[1] == whole[1][:3]
    assert run("--steps", "6", "--dropout", "0.5", "--resume") == 0
    assert losses(run.path) == whole


def test_resuming_one_cell_keeps_the_other(run):
    assert run("--steps", "2", cells=CELLS) == 0
    assert run("--steps", "3", "--resume", cells=("GRU",)) == 0
    assert len(losses(run.path, "LSTM")[0]) == 2
    assert len(losses(run.path, "GRU")[0]) == 3


def test_a_model_that_learns_otherwise_fails_the_run(run, capsys, monkeypatch):
    class Wrong(seqkern.GRU):
        def forward(self, x, state=None):
            output, state = super().forward(x, state)
            return output * 1.5, state

    class Namespace:
        GRU = Wrong

    monkeypatch.setitem(next_word.NAMESPACES, "seqkern", Namespace)
    assert run("--steps", "6") == 1
    assert "[FAIL] GRU: first 6 losses" in capsys.readouterr().out


def test_a_wrong_layer_fails_the_table(run, capsys, monkeypatch):
    class Wrong(seqkern.RNN):
        def forward(self, x, state=None):
            output, state = super().forward(x, state)
            return output + 1e-3, state

    monkeypatch.setattr(seqkern, "RNN", Wrong)
    assert run("--steps", "2") == 1
    output = capsys.readouterr().out
    assert "[FAIL] results of the timed layers agree" in output
    assert "wrong result" in output


def test_interrupt_saves_and_can_be_resumed(run, capsys, monkeypatch):
    class Interrupting(next_word.Progress):
        def update(self, done, text=""):
            if done == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(next_word, "Progress", Interrupting)
        assert run("--steps", "6") == 130
    assert "go on with --resume" in capsys.readouterr().out
    assert [len(history) for history in losses(run.path)] == [3, 3]
    assert run("--steps", "6", "--resume") == 0


def test_second_interrupt_is_not_held_back(request):
    # A shell that starts this in the background has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), stop_request() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_minutes_end_training_after_fifty_steps(run, capsys):
    assert run("--steps", "90", "--minutes", "1e-6") == 0
    assert "stopped by --minutes after 50 of 90 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: must be greater than 0, got 0"),
        (["--steps", "many"], "argument --steps: 'many' is not a number"),
        (["--dropout", "1"], "argument --dropout: must be .* smaller than 1, got 1"),
        (["--temperature", "nan"], "argument --temperature: must be greater than 0, got nan"),
        (["--cells", "CNN"], "invalid choice: 'CNN'"),
        (["--prompt", "zebra"], "not in the vocabulary: zebra"),
        (["--resume"], "cannot read checkpoint"),
    ],
)
def test_bad_options_are_named(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_resuming_with_another_size_is_refused(run, capsys):
    assert run("--steps", "2") == 0
    with pytest.raises(SystemExit):
        run("--steps", "2", "--resume", "--size", "16")
    assert "made with another setting: size 8 (now 16)" in capsys.readouterr().err


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as stopped:
        next_word.main(["--help"])
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    for option in ("--budget", "--steps", "--resume", "--prompt", "--temperature", "--top-k"):
        assert option in output


# reports


def test_checks_count_and_none_is_a_failure(capsys):
    checks = report.Checks()
    assert checks.exit_status == 1
    checks.add(True, "fine")
    assert checks.exit_status == 0
    checks.add(False, "not fine")
    assert checks.exit_status == 1
    assert checks.summary() == "1 checks passed, 1 failed"
    assert "[FAIL] not fine" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2, 10, 49, 50, 51, 300])
def test_shown_steps_start_and_end_the_curve(count):
    shown = report.shown_steps(count)
    assert shown[0] == 0
    assert shown[-1] == count - 1
    assert shown == sorted(set(shown))


def test_loss_curves_give_the_relative_difference():
    last = report.loss_curves([8.0, 4.0], [8.0, 4.2]).splitlines()[-1]
    assert last.split()[:4] == ["2", "4.00000", "4.20000", "5.0e-02"]
