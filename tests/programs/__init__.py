"""Programs that use recurrent modules, by topic: two tables."""

# Each adds its rows.
from . import (  # noqa: F401
    calls,
    cells,
    construction,
    different,
    hooks,
    layers,
    life,
    names,
    parameters,
    parametrizations,
    state,
)
from .table import ROWS, TABLE

__all__ = ["ROWS", "TABLE"]
