"""No layer reaches past the next, and no SIMD level's code reaches a machine that lacks it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from seqkern import _C, _build_info

CSRC = Path(__file__).resolve().parent.parent / "csrc"

# What a folder may include from csrc/. Only the last may see torch.
MAY_INCLUDE = {
    "cells": ("cells",),
    "cpu": ("cells", "cpu"),
    "cuda": ("cells", "cuda"),
    "ops": ("cells", "cpu", "cuda", "ops"),
}
TENSOR_HEADERS = ("torch", "ATen", "c10", "caffe2", "pybind11", "Python.h")


def includes(folder: str) -> list[tuple[str, str]]:
    """(file, included path) of each #include in a folder."""
    return [
        (path.name, included)
        for path in sorted((CSRC / folder).rglob("*.*"))
        for included in re.findall(
            r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE
        )
    ]


@pytest.mark.parametrize("folder", MAY_INCLUDE)
def test_includes_go_down(folder):
    if not (CSRC / folder).exists():
        pytest.skip(f"there is no csrc/{folder} yet")
    found = includes(folder)
    assert found, f"no #include found in csrc/{folder}: has the layout changed?"
    forbidden = [other for other in MAY_INCLUDE if other not in MAY_INCLUDE[folder]]
    if folder != "ops":
        forbidden += TENSOR_HEADERS
    wrong = [(file, path) for file, path in found if path.split("/")[0] in forbidden]
    assert not wrong


def kernel_object(level: str) -> Path:
    """The object file of kernels.cpp for one level."""
    if not _build_info.BUILD_DIR:
        pytest.skip("seqkern was installed from a wheel: there is no build tree to look at")
    name = f"CMakeFiles/seqkern_kernels_{level.upper()}.dir/csrc/cpu/kernels.cpp.o"
    return Path(_build_info.BUILD_DIR) / name


def exported_symbols(path: Path) -> list[str]:
    """The mangled names that the linker can see: strong, weak and unique ones."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not on the PATH")
    lines = subprocess.run(
        ["nm", "--defined-only", "--extern-only", "--format=posix", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [line.split()[0] for line in lines]


def outside_namespace(symbols: list[str], level: str) -> list[str]:
    # Names of the namespace's functions, members and their statics, not of std templates on its
    # types: those the linker would share with all other files.
    namespace = f"7seqkern3cpu{len(level)}{level.upper()}"
    own = re.compile(rf"_Z(GV|T[ISV])?Z*NK?{namespace}")
    return [symbol for symbol in symbols if not own.match(symbol)]


@pytest.mark.parametrize("level", ["default", "avx2", "avx512", "avx512_bf16"])
def test_kernel_objects_export_only_their_namespace(level):
    """The linker keeps one copy of an inline function that several objects define. Were it this
    object's, its instructions would run on machines without the level."""
    if level.removesuffix("_bf16") not in _C.build_info()["capabilities"]:
        pytest.skip(f"this build has no level {level}")
    symbols = exported_symbols(kernel_object(level))
    assert any("5table" in symbol or "10bf16_table" in symbol for symbol in symbols)
    assert outside_namespace(symbols, level) == []


def test_namespace_check_sees_a_leak():
    own = ["_ZN7seqkern3cpu4AVX25tableEv", "_ZZN7seqkern3cpu4AVX21fEvE1x"]
    leaks = ["_ZNSt6vectorIfSaIfEE6resizeEm", "_ZSt4fillIPN7seqkern3cpu4AVX23VecEEvT_S4_", "f"]
    assert outside_namespace(own + leaks, "avx2") == leaks
