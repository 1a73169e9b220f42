"""Compiles every CUDA kernel for each architecture with warnings as errors, and looks at what came
out: no spills, no local memory, tensor-core instructions where there should be some, and around the
flags that blocks exchange what the memory model needs. Needs nvcc, no torch and no GPU. Holds the
tables in docs/cuda.md to it, or writes them with --write; leaves PTX and cubins in build/cuda-check.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "cuda-check"
PAGE = ROOT / "docs" / "cuda.md"
# The first of each generation, and the device that the occupancy is for.
ARCHITECTURES = {75: "T4", 80: "A100", 90: "H100", 100: "B200", 120: "RTX 5090"}
# Tables in the page, by name.
BEGIN, END = "<!-- tools/cuda_check.py writes {} from here -->\n", "<!-- to here -->\n"
# Kernels whose name has the first run on tensor cores, of architectures from the second on.
TENSOR_CORES = ("_mma_", 80)
# The one parameter of what goes on around the steps.
AROUND = {"prepare": "Prepare", "run_sums": "Both<RunSums>", "finish": "Finish"}
# The PTX that the page describes, and what in it is more than arithmetic, loads and stores.
PTX_ARCHITECTURE = 80
SPECIAL = re.compile(
    r"(?:ld\.(?:acquire|relaxed|volatile|global\.nc)|st\.(?:release|relaxed|volatile)|atom|red\.|fence|membar"
    r"|bar|mbarrier|shfl|vote|match|redux|activemask|elect|cp\.async|mma|wmma|wgmma|ldmatrix|griddepcontrol"
    r"|nanosleep|prefetch|cvt\.rn\.bf16|cvt\.rn\.f16|cvta\.shared|trap|brkpt)[\w.:]*|\w+\.approx[\w.]*"
)


@dataclass
class Kernel:
    registers: int = 0
    shared: int = 0
    local: int = 0  # bytes of stack, spill stores and spill loads
    occupancy: str = ""


def run(*command) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compile_one(source: Path, arch: int) -> dict[str, Kernel]:
    """What ptxas says of each kernel of a file; from the last run where nothing has changed."""
    cubin = OUT / f"{source.stem}.{arch}.cubin"
    log = cubin.with_suffix(".log")
    included = [path for part in ("cells", "cuda") for path in (ROOT / "csrc" / part).iterdir()]
    newest = max(path.stat().st_mtime for path in included)
    if not log.exists() or log.stat().st_mtime < newest:
        log.unlink(missing_ok=True)
        text = run(
            *("nvcc", "-std=c++20", "-O3", "-cubin", f"-arch=sm_{arch}", "-I", ROOT / "csrc"),
            *("-Xcompiler=-Wall,-Wextra", "-Werror=all-warnings"),
            *("-Xptxas=-v,-warn-spills,-Werror", "-o", cubin, source),
        )
        log.write_text(text)
    text = log.read_text()
    kernels = {}
    for name, said in re.findall(
        r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", text, re.DOTALL
    ):
        number = {
            what: sum(map(int, re.findall(rf"(\d+) (?:bytes )?{what}", said)))
            for what in ("registers", "smem", "stack frame", "spill stores", "spill loads")
        }
        local = number["stack frame"] + number["spill stores"] + number["spill loads"]
        kernels[name] = Kernel(number["registers"], number["smem"], local)
    return kernels


def make_ptx(source: Path) -> str:
    ptx = OUT / f"{source.stem}.{PTX_ARCHITECTURE}.ptx"
    options = ("-std=c++20", "-O3", "-ptx", f"-arch=sm_{PTX_ARCHITECTURE}", "-I", ROOT / "csrc")
    run("nvcc", *options, "-o", ptx, source)
    return ptx.read_text()


def special_instructions(ptx: dict[str, str]) -> str:
    """Which files have what an emulator must know beside the common instructions."""
    found: dict[str, set[str]] = {}
    for file, text in ptx.items():
        # A statement a line, or some in braces on one that comes from inline assembly.
        for opcode in re.findall(
            r"(?:^|[;{])[ \t]*(?:@!?%p\d+ )?([a-z][\w.:]*)", text, re.MULTILINE
        ):
            if SPECIAL.fullmatch(opcode):
                found.setdefault(opcode, set()).add(file)
    lines = ["| instruction | " + " | ".join(ptx) + " |", "|---" * (len(ptx) + 1) + "|"]
    for opcode in sorted(found):
        cells = ["yes" if file in found[opcode] else "" for file in ptx]
        lines.append(f"| `{opcode}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parameter_problems(ptx: dict[str, str], layouts: str) -> list[str]:
    """Kernels whose parameters do not have the sizes that the page gives."""
    sizes = {name: int(size) for name, size in re.findall(r"\| `([\w<>]+)` \| (\d+) \|", layouts)}
    problems = []
    for text in ptx.values():
        for kernel, listed in re.findall(r"\.entry (\w+)\((.*?)\)", text, re.DOTALL):
            found = [
                int(size or 4)
                for size in re.findall(r"\.param [^,]*?(?:\[(\d+)\])?(?:,|$)", listed)
            ]
            backward = "backward" in kernel
            both = sizes["Both<Backward>" if backward else "Both<Forward>"]
            if "_block_" in kernel:
                expected = [both]
            elif "_grid_" in kernel:
                expected = [both, sizes["GridMemory"]]
            elif "_mma_" in kernel:
                expected = [both, sizes["MmaMemory"]]
            elif part := next((part for part in AROUND if f"_{part}_" in kernel), None):
                expected = [sizes[AROUND[part]]]
            else:
                starts = {"activate": "Activate", "step_forward": "StepForward"}
                name = next((starts[part] for part in starts if part in kernel), "StepBackward")
                expected = [sizes[name], 4]
            if found != expected:
                problems.append(f"{kernel}: parameters of {found} bytes, the page says {expected}")
    return problems


def flag_problems(sass: str) -> list[str]:
    """Blocks exchange data with plain accesses, ordered by flags and counters. The load of one must be
    followed by what drops the first-level cache, its store or addition must come after a fence, and no
    load may go through the cache that is not coherent."""
    problems = []
    code = [line.split("*/", 1)[1] for line in sass.splitlines() if line.lstrip().startswith("/*")]
    for i, line in enumerate(code):
        if "LDG" in line and "CONSTANT" in line:
            problems.append("a load through the cache that is not coherent")
        # Before the next branch, which leaves the loop or looks at the flag again.
        if "LDG.E.STRONG.GPU" in line:
            until = next((c for c in code[i + 1 :] if "CCTL.IVALL" in c or " BRA " in c), "")
            if "CCTL.IVALL" not in until:
                problems.append("a flag's load without CCTL.IVALL after it")
        before = code[max(0, i - 6) : i]
        changes = "STG.E.STRONG.GPU" in line or re.search(r"\bREDG?\..*STRONG\.GPU", line)
        if changes and not any("MEMBAR" in c and "GPU" in c for c in before):
            problems.append("a flag's store or a counter's addition without MEMBAR before it")
    return problems


def disassemble(cubin: Path, nvdisasm: str) -> dict[str, str]:
    """The SASS of each kernel."""
    text = run(nvdisasm, "-c", cubin)
    return dict(re.findall(r"\.text\.(\w+):(.*?)(?=\.text\.|\Z)", text, re.DOTALL))


def build_program() -> Path:
    """What C++ knows: cuda_occupancy.h and the planner."""
    program = OUT / "occupancy"
    sources = (ROOT / "tools/cuda_occupancy.cpp", ROOT / "csrc/cuda/plan.cpp")
    folders = (f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cpp'}")
    run(
        "nvcc",
        "-std=c++20",
        "-Xcompiler=-Wno-missing-field-initializers",
        *folders,
        *sources,
        "-o",
        program,
    )
    return program


def add_occupancy(found: dict[int, dict[str, Kernel]], program: Path) -> None:
    lines = [
        f"{name} {arch} {k.registers} {k.shared}"
        for arch, kernels in found.items()
        for name, k in kernels.items()
    ]
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    for line in done.stdout.splitlines():
        name, arch, _threads, shared, warps, most = line.split()
        kernel = found[int(arch)][name]
        kernel.occupancy = f"{100 * int(warps) // int(most)}%"
        kernel.shared += int(shared)


def table(found: dict[int, dict[str, Kernel]]) -> str:
    version = re.search(r"V([\d.]+)", run("nvcc", "--version"))[1]
    heads = [f"sm_{arch} ({gpu})" for arch, gpu in ARCHITECTURES.items()]
    lines = [
        f"nvcc {version}. Registers a thread, KiB of shared memory a block, theoretical occupancy.",
        "A block or grid kernel's shared memory is that of the largest H, a multiple of 16, that the",
        "device has room for with 16 rows, or the largest of a kernel's size. No kernel has spills or",
        "local memory.",
        "",
        "| kernel | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name in sorted(next(iter(found.values()))):
        cells = []
        for arch in ARCHITECTURES:
            k = found[arch].get(name)
            cells.append(f"{k.registers}, {k.shared / 1024:.0f}, {k.occupancy}" if k else "-")
        lines.append(f"| `{name.removeprefix('seqkern_')}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/cuda.md")
    parser.add_argument(
        "--nvdisasm", default=shutil.which("nvdisasm"), help="NVIDIA's disassembler"
    )
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("nvcc is not on the PATH")
    if options.nvdisasm is None:
        sys.exit("nvdisasm is not on the PATH: pip install nvidia-cuda-nvdisasm, or --nvdisasm")
    OUT.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    jobs = [(source, arch) for arch in ARCHITECTURES for source in sources]
    found: dict[int, dict[str, Kernel]] = {arch: {} for arch in ARCHITECTURES}
    with ThreadPoolExecutor(2) as pool:
        for (_, arch), kernels in zip(jobs, pool.map(lambda j: compile_one(*j), jobs), strict=True):
            found[arch] |= kernels
    if not all(found.values()):
        sys.exit("ptxas told of no kernel: has its output changed?")

    problems = [
        f"{name} for sm_{arch}: {k.local} bytes of stack and spills"
        for arch, kernels in found.items()
        for name, k in kernels.items()
        if k.local
    ]
    part, first = TENSOR_CORES
    for source, arch in jobs:
        sass = disassemble(OUT / f"{source.stem}.{arch}.cubin", options.nvdisasm)
        for name, code in sass.items():
            if "LDL" in code or "STL" in code:
                problems.append(f"{name} for sm_{arch} has local loads or stores")
            if part in name and arch >= first and "HMMA" not in code:
                problems.append(f"{name} for sm_{arch} has no HMMA")
            problems += [f"{name} for sm_{arch}: {problem}" for problem in flag_problems(code)]
            exchanges = "_grid_" in name or (part in name and arch >= first)
            if exchanges and not ("STRONG.GPU" in code and "MEMBAR" in code):
                problems.append(f"{name} for sm_{arch} has no flags")
    program = build_program()
    add_occupancy(found, program)

    ptx = {
        source.name: make_ptx(source) for source in sources if "__global__" in source.read_text()
    }
    layouts = run(program, "--layouts")
    problems += parameter_problems(ptx, layouts)

    page = new = PAGE.read_text()
    tables = {
        "kernels": table(found),
        "predictions": run(program, "--predict"),
        "layouts": layouts,
        "shapes": run(program, "--shapes"),
        "instructions": special_instructions(ptx),
    }
    for name, text in tables.items():
        before, rest = new.split(BEGIN.format(name))
        new = before + BEGIN.format(name) + text + END + rest.split(END, 1)[1]
    if options.write:
        PAGE.write_text(new)
    elif new != page:
        problems.append(
            "docs/cuda.md's tables are not of these kernels: make cuda-check ARGS=--write"
        )
    count = sum(map(len, found.values()))
    print(f"{count} kernels for {len(found)} architectures, {len(problems)} problems")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
