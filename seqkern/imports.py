"""Telling a module of torch something, without importing it: importing Dynamo takes as long as importing torch."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Callable

__all__ = ["after_import"]


def after_import(names: str, call: Callable, once: bool = False) -> Callable[[], None]:
    """Calls a function with each module whose whole name matches the pattern: now with those that are there,
    later with those that are imported; with ``once`` for the first one alone. Returns what ends that.

    (No generator: one that is left suspended when Python ends is closed after the modules are gone.)
    """
    found = [m for name, m in list(sys.modules.items()) if m and re.fullmatch(names, name)]
    for module in found:
        call(module)
    if found and once:
        return lambda: None
    finder = _Finder(names, call, once)
    sys.meta_path.insert(0, finder)
    return finder.remove


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, names: str, call, once: bool):
        self._names, self._call, self._once = re.compile(names), call, once

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname, path, target=None):
        if not self._names.fullmatch(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            if self in sys.meta_path:  # else it was ended meanwhile
                if self._once:
                    self.remove()
                self._call(module)

        spec.loader.exec_module = exec_module
        return spec
