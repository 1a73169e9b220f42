"""Runs the programs of tests/cpp, each compiled for each SIMD level."""

import subprocess
import sys
from pathlib import Path

import pytest

import seqkern
from seqkern import _C, _build_info

SOURCES = sorted((Path(__file__).parent / "cpp").glob("*.cpp"))


@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_cpp(source, level):
    if level not in seqkern.cpu_capabilities():
        pytest.skip(f"this machine or build has no level {level}")
    run(source, level)


def test_bfloat16_products():
    if not _C.cpu_bfloat16():
        pytest.skip("this machine or build has no kernels for bfloat16")
    run(Path("test_gemm.cpp"), "avx512_bf16")


def test_vector_tables():
    script = Path(__file__).parent.parent / "tools" / "vector_tables.py"
    if not script.exists():
        pytest.skip("the tools are not here")
    result = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def run(source, level):
    program = Path(_build_info.BUILD_DIR) / "cpp_tests" / f"{source.stem}-{level}"
    if not _build_info.BUILD_DIR or not program.exists():
        pytest.skip("the C++ tests are not built: install with SEQKERN_BUILD_TESTS=1")
    result = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
