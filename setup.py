"""Runs CMakeLists.txt with Ninja and puts seqkern._C into the package.

Metadata is in pyproject.toml.

Environment:
  SEQKERN_CUDA          auto (default), on or off; host: the kernels on tests/cuda_host, no GPU
  SEQKERN_SANITIZE      address or undefined: an instrumented build, in a build folder of its own
  SEQKERN_BUILD_TESTS   1: build the C++ tests too
  MAX_JOBS, CMAKE_BUILD_PARALLEL_LEVEL   compile jobs at once (default: the cores of this machine)
  CXX                   the C++ compiler
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def fail(sentence: str) -> None:
    """One sentence, no traceback of ours: the reader needs the remedy."""
    sys.stderr.flush()
    print(f"\nseqkern: {sentence}\n", file=sys.stderr, flush=True)
    raise SystemExit(1)


def import_torch():
    try:
        import torch
    except ImportError as error:
        fail(
            f"building needs PyTorch in this environment ({error}): `pip install torch` first, then "
            "install seqkern with --no-build-isolation."
        )
    return torch


def find_compiler() -> str:
    wanted = os.environ.get("CXX")
    if wanted:
        if shutil.which(wanted.split()[0]) is None:
            fail(f"CXX names the compiler '{wanted}', which is not there: correct or unset CXX.")
        return wanted
    for compiler in ("g++", "c++"):
        if shutil.which(compiler):
            return compiler
    fail(
        "building needs a C++20 compiler and found neither g++ nor c++: install one "
        "(Debian and Ubuntu: `apt-get install g++`) or name it in CXX."
    )


def find_program(name: str) -> str:
    """The program of the environment that runs this (PyPI's cmake and ninja), else the PATH's."""
    beside_python = Path(sysconfig.get_path("scripts")) / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if not found:
        fail(f"building needs {name} and found none: `pip install {name}`.")
    return found


def torch_openmp(torch) -> str:
    """The OpenMP runtime that torch's wheel brings; "" where torch uses the system's."""
    package = Path(torch.__file__).parent
    found = sorted([*package.glob("lib/libgomp*.so*"), *package.parent.glob("torch.libs/libgomp*")])
    return str(found[0]) if found else ""


class CMakeBuild(build_ext):
    def run(self) -> None:
        compiler = find_compiler()
        torch = import_torch()
        from torch.utils import cpp_extension

        torch_version = torch.__version__.split("+")[0]
        sanitize = os.environ.get("SEQKERN_SANITIZE", "")
        cuda = os.environ.get("SEQKERN_CUDA", "auto").lower()
        tag = f"{sys.implementation.cache_tag}-torch{torch_version}"
        # CMake keeps the compiler that it first met in a folder.
        chosen = re.sub(r"[^\w.+]+", "-", os.environ.get("CXX", ""))
        host = "cuda-host" if cuda == "host" else ""
        build = ROOT / "build" / "-".join(filter(None, ["cmake", tag, host, sanitize, chosen]))
        library_dir = Path(torch.__file__).parent / "lib"
        settings = {
            "CMAKE_MAKE_PROGRAM": find_program("ninja"),
            "CMAKE_BUILD_TYPE": "Release",
            "SEQKERN_TORCH_INCLUDE_DIRS": ";".join(cpp_extension.include_paths()),
            "SEQKERN_TORCH_LIBRARY_DIR": library_dir,
            "SEQKERN_TORCH_VERSION": torch_version,
            "SEQKERN_TORCH_OPENMP": torch_openmp(torch),
            "SEQKERN_CXX11_ABI": int(torch._C._GLIBCXX_USE_CXX11_ABI),
            "SEQKERN_PYTHON_INCLUDE_DIR": sysconfig.get_path("include"),
            "SEQKERN_EXT_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "SEQKERN_CUDA": cuda,
            "SEQKERN_TORCH_CUDA": torch.version.cuda or "",
            "SEQKERN_SANITIZE": sanitize,
            "SEQKERN_BUILD_TESTS": "ON" if os.environ.get("SEQKERN_BUILD_TESTS") == "1" else "OFF",
        }
        cmake = find_program("cmake")
        jobs = os.environ.get("MAX_JOBS") or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL")
        configure = [cmake, "-S", ROOT, "-B", build, "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in settings.items()]
        compile_ = [cmake, "--build", build, "--parallel", jobs or str(os.cpu_count() or 1)]
        for what, command in (("configuring", configure), ("compiling", compile_)):
            result = subprocess.run(command, env={**os.environ, "CXX": compiler}, check=False)
            if result.returncode:
                fail(f"{what} failed with {compiler}; the first error above says why.")
        # A wheel must not carry a path of the machine that built it.
        shown = build if self.inplace or host else ""
        self.put_beside_package(build, torch_version, shown)

    def put_beside_package(self, build: Path, torch_version: str, shown: Path | str) -> None:
        target = Path(self.get_ext_fullpath("seqkern._C")).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        info = build / "_build_info.py"
        info.write_text(
            '"""Written by setup.py, read before the extension is loaded."""\n\n'
            f'TORCH_VERSION = "{torch_version}"\n'
            f"BUILD_DIR = {str(shown)!r}\n"
        )
        # Replaced, never overwritten: a process that has the old library loaded keeps it.
        for source, place in ((build / target.name, target), (info, target.parent / info.name)):
            temporary = place.with_name(place.name + ".new")
            shutil.copy(source, temporary)
            os.replace(temporary, place)


setup(ext_modules=[Extension("seqkern._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
