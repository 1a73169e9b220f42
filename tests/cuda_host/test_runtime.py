"""test_runtime.cpp: the runtime that executes CUDA kernels on the CPU, on kernels of its own, also
under the sanitizers."""

import os
import subprocess
from pathlib import Path

import pytest

from seqkern import _build_info

PROGRAMS = Path(_build_info.BUILD_DIR) / "cuda_host_tests"
if not _build_info.BUILD_DIR or not (PROGRAMS / "test_runtime-none").exists():
    pytest.skip("needs a build with SEQKERN_CUDA=host: make cuda-host", allow_module_level=True)

NAMES = subprocess.run(
    [PROGRAMS / "test_runtime-none"], capture_output=True, text=True, check=True
).stdout.split()
# Under ThreadSanitizer: without errors that end a launch half-way, whose remains look like races,
# and without mma, whose many launches take minutes.
NO_RACE = (
    "async_copies",
    "atomics",
    "barrier_or",
    "barriers",
    "flags",
    "grid_barrier",
    "indices",
    "load_matrices",
    "warps",
)
RACES = ("missing_barrier", "missing_grid_barrier", "flag_before_data")


def run(sanitizer: str, name: str) -> subprocess.CompletedProcess:
    # What a launch that failed leaves on its fibers' stacks is never freed.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    command = [PROGRAMS / f"test_runtime-{sanitizer}", name]
    if sanitizer == "thread":  # whose shadow memory has a fixed place
        command = ["setarch", "-R", *command]
    return subprocess.run(
        command,
        env={**os.environ, **options},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("sanitizer", ("none", "address"))
@pytest.mark.parametrize("name", NAMES)
def test_runtime(name, sanitizer):
    result = run(sanitizer, name)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize("name", NO_RACE)
def test_no_race(name):
    result = run("thread", name)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize(
    ("name", "sanitizer", "error"),
    [
        ("shared_overrun", "address", "index 33 out of bounds"),
        ("dynamic_overrun", "address", "heap-buffer-overflow"),
        ("global_overrun", "address", "heap-buffer-overflow"),
        ("local_overrun", "address", "index 7 out of bounds"),
        *((name, "thread", "data race") for name in RACES),
        ("block_race", "thread", "data race"),
        ("shuffle_race", "thread", "data race"),
        ("grid_race", "thread", "data race"),
        ("flag_race", "thread", "data race"),
    ],
)
def test_sanitizer_finds(name, sanitizer, error):
    assert run("none", name).returncode == 0
    result = run(sanitizer, name)
    assert result.returncode != 0 and error in result.stderr, result.stderr[-4000:]
