"""Building, loading and the choice of the SIMD level: what works, and what is said when it doesn't."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import seqkern
from seqkern import _C, _build, _build_info

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter that finds this seqkern."""
    path = os.pathsep.join([str(Path(seqkern.__file__).parent.parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# ---- The extension and torch ----


def test_build_info():
    info = _C.build_info()
    assert info["torch_version"] == _build_info.TORCH_VERSION == torch.__version__.split("+")[0]
    assert info["compiler"].split()[0] in ("GNU", "Clang", "AppleClang")
    assert info["cuda"] is False or torch.version.cuda
    assert info["capabilities"][0] == "default"


@pytest.mark.parametrize(
    ("module", "problem", "remedy"),
    [
        ("torch", "seqkern needs PyTorch", "pip install torch"),
        ("seqkern._build_info", "not built", "pip install --no-build-isolation"),
        ("seqkern._C", "does not load", "pip install --no-build-isolation"),
    ],
)
def test_missing_module(monkeypatch, module, problem, remedy):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(_build.LoadError, match=problem) as caught:
        _build.load()
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_another_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "1.2.3+cpu")
    monkeypatch.setitem(sys.modules, "seqkern._C", None)  # must not be reached
    built = _build_info.TORCH_VERSION
    with pytest.raises(
        _build.LoadError, match=f"built against torch {built}, but torch 1.2.3 is running"
    ) as caught:
        _build.load()
    assert f"pip install torch=={built}" in caught.value.remedy


def test_another_build_of_the_same_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", _build_info.TORCH_VERSION + "+elsewhere")
    _build.load()


def test_one_openmp_runtime():
    """Two runtimes in a process have two pools of threads on the same cores."""
    result = python(
        "import torch, seqkern\n"
        "from seqkern.doctor import openmp_runtimes\n"
        "torch.set_num_threads(2)\n"
        "seqkern.LSTM(64, 128)(torch.randn(50, 32, 64))\n"
        "print(*openmp_runtimes(), sep='\\n')"
    )
    assert result.returncode == 0, result.stderr
    runtimes = result.stdout.split()
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system has no /proc to look into")
    assert len(runtimes) == 1
    package = Path(torch.__file__).resolve().parent
    if [*package.glob("lib/libgomp*"), *package.parent.glob("torch.libs/libgomp*")]:
        assert Path(runtimes[0]).resolve().is_relative_to(package.parent)


# ---- SIMD levels ----


def test_highest_level_by_itself():
    result = python(
        "import seqkern; print(seqkern.cpu_capability())", **{_build.CAPABILITY_VARIABLE: ""}
    )
    assert result.stdout.split() == [seqkern.cpu_capabilities()[-1]]


def test_levels_of_the_machine():
    levels, compiled = seqkern.cpu_capabilities(), _C.build_info()["capabilities"]
    assert levels == [level for level in compiled if level in levels]
    assert levels[0] == "default"
    if compiled != ["default"]:
        # torch asks the processor by other means.
        wide = torch.backends.cpu.get_cpu_capability()
        assert ("avx512" in levels) == (wide == "AVX512")
        assert ("avx2" in levels) == (wide in ("AVX2", "AVX512"))


@pytest.mark.parametrize("level", seqkern.cpu_capabilities())
def test_level_from_the_environment(level):
    result = python(
        "import seqkern; print(seqkern.cpu_capability())", **{_build.CAPABILITY_VARIABLE: level}
    )
    assert result.stdout.split() == [level], result.stderr


def test_bad_level_in_the_environment():
    result = python("import seqkern", **{_build.CAPABILITY_VARIABLE: "sse9"})
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "SEQKERN_CPU_CAPABILITY" in last and "sse9" in last and "default" in last


@pytest.mark.parametrize("level", seqkern.cpu_capabilities())
def test_use_cpu_capability(level):
    before = seqkern.cpu_capability()
    with pytest.raises(KeyError), seqkern.use_cpu_capability(level):
        assert seqkern.cpu_capability() == level
        raise KeyError
    assert seqkern.cpu_capability() == before


@pytest.mark.parametrize("level", ["sse9", "", "AVX2"])
def test_use_unknown_cpu_capability(level):
    before = seqkern.cpu_capability()
    message = rf"capability must be one of .*\(default.*\), got '{level}'"
    with pytest.raises(RuntimeError, match=message), seqkern.use_cpu_capability(level):
        pytest.fail("the block must not run")
    assert seqkern.cpu_capability() == before


# ---- setup.py and CMakeLists.txt: one sentence ----

needs_checkout = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="needs the checkout, not the installed package"
)


@needs_checkout
@pytest.mark.parametrize(
    ("environment", "missing", "sentence"),
    [
        ({}, "torch", "building needs PyTorch in this environment"),
        ({"CXX": "no-such-compiler -O2"}, None, "CXX names the compiler 'no-such-compiler -O2'"),
        ({"CXX": "", "PATH": ""}, None, "building needs a C++20 compiler and found neither"),
    ],
)
def test_setup_says_what_is_missing(monkeypatch, capfd, environment, missing, sentence):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "-q", "build_ext", "--inplace"])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")
    assert caught.value.code == 1
    said = capfd.readouterr().err.strip()
    assert said.startswith(f"seqkern: {sentence}") and "\n" not in said


def cmake(*options: str, build: Path) -> subprocess.CompletedProcess:
    program = shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")
    if program is None:
        pytest.skip("cmake is neither beside Python nor on the PATH")
    return subprocess.run(
        [program, "-S", ROOT, "-B", build, *options], capture_output=True, text=True, check=False
    )


@needs_checkout
@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("-DSEQKERN_CUDA=on", "SEQKERN_CUDA=on needs"),
        ("-DSEQKERN_CUDA=maybe", "SEQKERN_CUDA must be auto, on, off or host, got 'maybe'"),
        ("-DSEQKERN_SANITIZE=thread", "SEQKERN_SANITIZE must be address or undefined"),
    ],
)
def test_cmake_refuses(tmp_path, option, sentence):
    result = cmake(option, build=tmp_path)
    assert result.returncode != 0
    assert sentence in " ".join(result.stderr.split())


@needs_checkout
def test_cmake_configures_the_cpp_tests_without_torch(tmp_path):
    result = cmake("-DSEQKERN_BUILD_TESTS=ON", "-DSEQKERN_CUDA=off", build=tmp_path)
    assert result.returncode == 0, result.stderr


@needs_checkout
def test_readme_example():
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code
    for example in code:
        result = python(example)
        assert result.returncode == 0, result.stderr
