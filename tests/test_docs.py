"""The code in docstrings and in the documentation runs, and says what it says."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest
import torch

import seqkern

ROOT = Path(__file__).parent.parent
MODULES = [
    importlib.import_module(f"seqkern.{info.name}")
    for info in pkgutil.iter_modules(seqkern.__path__)
    if info.name != "__main__" and info.name != "_C"
]
EXAMPLE = re.compile(r"^( *)Example::\n\n((?:\1    .*\n|\s*\n)+)", re.MULTILINE)
SHAPES = re.compile(r"^(?P<code>.+\.shape)\s+# (?P<shapes>\[.*\])$")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documented():
    """Name, module and docstring of every module, and of its own classes, functions and methods."""
    for module in (seqkern, *MODULES):
        yield module.__name__, module, module.__doc__ or ""
        for name, thing in vars(module).items():
            if getattr(thing, "__module__", None) != module.__name__ or not callable(thing):
                continue
            yield f"{module.__name__}.{name}", module, inspect.getdoc(thing) or ""
            if inspect.isclass(thing):
                for method, function in vars(thing).items():
                    if inspect.isfunction(function) and function.__doc__:
                        doc = inspect.getdoc(function)
                        yield f"{module.__name__}.{name}.{method}", module, doc


def examples():
    for name, module, doc in documented():
        for number, found in enumerate(EXAMPLE.finditer(doc + "\n")):
            yield pytest.param(module, textwrap.dedent(found[2]), id=f"{name}-{number}")


def run(code: str, names: dict) -> None:
    """Line for line; where a line ends with shapes in a comment, they are those of its value."""
    exec(compile(code, "<example>", "exec"), names)  # noqa: S102 the repository's own text
    for line in code.splitlines():
        if found := SHAPES.match(line):
            value = eval(found["code"], names)
            shapes = (value,) if isinstance(value, torch.Size) else value
            assert [list(shape) for shape in shapes] == list(
                ast.literal_eval(f"[{found['shapes']}]")
            )


@pytest.mark.parametrize("module, code", list(examples()))
def test_docstring_examples(module, code):
    short = module.__name__.rpartition(".")[2]
    names = vars(module) | {
        "torch": torch,
        "seqkern": seqkern,
        short: module,
        "__name__": "example",
    }
    run(code, names)


@pytest.mark.parametrize("module", (seqkern, *MODULES), ids=lambda module: module.__name__)
def test_doctests(module):
    names = {"torch": torch, "seqkern": seqkern}
    assert doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(found[1], id=f"{path.name}-{number}")
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for number, found in enumerate(BLOCK.finditer(path.read_text(encoding="utf-8")))
    ],
)
def test_documentation_runs(code):
    if "torch.onnx" in code:
        pytest.importorskip("onnxscript")
    run(code, {"__name__": "example"})


def test_a_wrong_shape_is_noticed():
    run("x = torch.zeros(2, 3)\nx.shape  # [2, 3]", {"torch": torch})
    with pytest.raises(AssertionError):
        run("x = torch.zeros(2, 3)\nx.shape, x.shape  # [2, 3], [2, 4]", {"torch": torch})


def test_concepts_link_every_example():
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(\.\./examples/(\w+)\.py\)", text))
    programs = {p.stem for p in (ROOT / "examples").glob("*.py") if "def main(" in p.read_text()}
    assert linked == programs - {"__main__"}


def test_every_public_function_has_an_example():
    page, lacking = (ROOT / "docs/reference.md").read_text(encoding="utf-8"), []
    documented_whole = re.findall(r"automodule:: (\S+)", page)
    for module in (seqkern, *map(importlib.import_module, documented_whole)):
        for name in module.__all__:
            thing = getattr(module, name)
            doc = inspect.getdoc(thing) or ""
            if inspect.isfunction(thing) and "Example::" not in doc and ">>>" not in doc:
                lacking.append(f"{module.__name__}.{name}")
    assert lacking == []


LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_lead_to_files(path):
    links = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (path.parent / link).is_file()] == []


def test_reference_has_every_public_name():
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto\w+:: (?:seqkern\.)?(\w+)", text, re.MULTILINE))
    assert set(seqkern.__all__) - named == set()
