"""What programs do with recurrent modules besides calling them: one table, run with both.

A row of `programs` is a function of a class; what it returns, warns and raises must be the same for
``torch.nn``'s class and seqkern's. (The table of constructors and calls is that of test_modules.py;
here its rows run once more through ``seqkern.patch``.) A row that differs on purpose has its reason
in DIFFERENT and must differ.
"""

from __future__ import annotations

import pytest
from programs import ROWS, TABLE
from programs.different import DIFFERENT
from programs.table import outcome, same
from torch import nn

import seqkern


def test_the_table_is_long():
    assert len(TABLE) >= 150


@pytest.mark.parametrize("name", TABLE)
def test_row(float64, name):
    function, kind = TABLE[name]
    (torchs, torch_warnings), (ours, our_warnings) = (
        outcome(lambda N: function(getattr(N, kind)), N) for N in (nn, seqkern)
    )
    assert "module 'torch" not in str(torchs), "the row is wrong, not the classes"
    if name in DIFFERENT or function.__name__ in DIFFERENT:
        assert isinstance(ours, Exception), "it no longer differs as it says"
        with pytest.raises(AssertionError):
            same(ours, torchs)
        return
    agree(ours, our_warnings, torchs, torch_warnings)


@pytest.mark.parametrize("program", ROWS)
def test_patched(float64, program):
    """The rows of test_modules.py: torch.nn's names in a patch do what they do outside."""
    torchs = outcome(program, nn)
    with seqkern.patch():
        ours = outcome(program, nn)
    agree(*ours, *torchs)


def agree(ours, our_warnings, torchs, torch_warnings):
    if isinstance(ours, Exception) and not isinstance(torchs, Exception):
        raise ours
    same(ours, torchs)
    assert our_warnings == torch_warnings
