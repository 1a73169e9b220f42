"""`python -m seqkern doctor`: well where all is well; a problem, a remedy and exit code 1 elsewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import seqkern
from seqkern import _build, doctor

PACKAGE = Path(seqkern.__file__).parent


def run_doctor(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """The command, with the package of `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "seqkern", "doctor"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_well():
    result = run_doctor(PACKAGE.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    labels = {line[:18].strip() for line in lines}
    assert labels >= {"seqkern", "Python", "torch", "compiler", "CPU capability", "threads"}
    assert labels >= {label for label, _, _ in doctor.CELLS}
    assert seqkern.__version__ in lines[0]
    assert "problem" not in result.stdout


def test_bad_level_in_the_environment():
    result = run_doctor(PACKAGE.parent, **{_build.CAPABILITY_VARIABLE: "sse9"})
    assert result.returncode == 1
    assert "problem: SEQKERN_CPU_CAPABILITY" in result.stdout
    assert "remedy:  unset SEQKERN_CPU_CAPABILITY" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("_build_info", "seqkern's extension is not built"),
        ("_C", "seqkern's extension does not load (undefined symbol: xyz)"),
    ],
)
def test_extension_missing(tmp_path, module, problem):
    """A copy of the package whose `module` fails. (Left out, it would be found in an editable
    install, which serves the submodules of any package of that name.)"""
    package = shutil.copytree(
        PACKAGE, tmp_path / "seqkern", ignore=shutil.ignore_patterns("_C.*", "__pycache__")
    )
    (package / f"{module}.py").write_text("raise ImportError('undefined symbol: xyz')\n")
    result = run_doctor(tmp_path)
    assert result.returncode == 1
    assert f"problem: {problem}" in result.stdout
    assert "remedy:  run `pip install" in result.stdout
    assert "Traceback" not in result.stderr


def test_another_torch(monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "1.2.3")
    assert doctor.run() == 1
    assert "but torch 1.2.3 is running" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["GRU", "LSTMCell"])
def test_wrong_cell(monkeypatch, capsys, name):
    class Wrong(getattr(seqkern, name)):
        def forward(self, input):
            return super().forward(input * 1.001)

    monkeypatch.setattr(seqkern, name, Wrong)
    assert doctor.run() == 1
    printed = capsys.readouterr().out
    assert f"problem: seqkern.{name} is off by" in printed
    assert printed.count("problem: ") == len(seqkern.cpu_capabilities())


def test_two_openmp_runtimes(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "openmp_runtimes", lambda: ["/a/libgomp.so.1", "/b/libomp.so"])
    assert doctor.run() == 1
    assert "problem: 2 OpenMP runtimes" in capsys.readouterr().out
