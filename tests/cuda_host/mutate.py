"""Deliberate bugs in the CUDA kernels, one at a time: each must be found by a check of `make
cuda-host`, which has to have been run before. `make cuda-mutations`; with --write their rows of the table
in docs/cuda.md are renewed; names of mutations limit the run to these.

The mutated file is compiled and linked by the build's own commands, with other paths: nothing of
the tree or its build changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = next(iter(sorted(ROOT.glob("build/cmake-*-cuda-host"))), ROOT / "build")
RUN = ROOT / "build" / "cuda-host"
WORK = ROOT / "build" / "mutations"
START, END = "<!-- tests/cuda_host/mutate.py writes from here -->", "<!-- to here -->"


@dataclass
class Mutation:
    name: str
    file: str  # of csrc
    old: str  # found `times`
    new: str
    tier: str  # whose tests are run
    times: int = 1


MUTATIONS = [
    Mutation(
        "a unit's gates read in reverse order",
        "cuda/step.cu",
        "q[g] = from_h[g * H];",
        "q[g] = from_h[(G - 1 - g) * H];",
        "stepwise",
    ),
    Mutation(
        "one unit too many in a row",
        "cuda/step.cu",
        """  const auto [r, unit] = place(blocks_per_row);
  if (r >= s.rows || unit >= a.H) return;
  const int64_t H = a.H, row""",
        """  const auto [r, unit] = place(blocks_per_row);
  if (r >= s.rows || unit > a.H) return;
  const int64_t H = a.H, row""",
        "stepwise",
    ),
    Mutation(
        "ragged: one row too many continues the step before",
        "cuda/around.cu",
        "chunk_row * a.K + unit] = r < s.continued",
        "chunk_row * a.K + unit] = r <= s.continued",
        "stepwise",
    ),
    Mutation(
        "the carried gradient of c is not stored",
        "cuda/step.cu",
        "  if constexpr (kCarries) as<A>(a.grad_state)[r * H + unit] = grad_state;\n}",
        "}",
        "stepwise",
    ),
    Mutation(
        "block: no barrier after h",
        "cuda/block.cu",
        "product.values(buffer)[own] = h;\n      __syncthreads();",
        "product.values(buffer)[own] = h;",
        "block",
    ),
    Mutation(
        "block: one buffer of h instead of two",
        "cuda/block.cu",
        "buffer ^= 1;\n      if (me.exists)",
        "if (me.exists)",
        "block",
    ),
    Mutation(
        "block: another row's sums from the exchange",
        "cuda/block.cu",
        "__shfl_xor_sync(~0u, odd ? a : b, 1)",
        "__shfl_xor_sync(~0u, odd ? b : a, 1)",
        "block",
    ),
    Mutation(
        "block: weights past the last column are read",
        "cuda/block.cu",
        "unit < H && k < width ? weight",
        "unit < H ? weight",
        "block",
    ),
    Mutation(
        "ragged, block: a row takes one step too many",
        "cuda/block.cu",
        "      A h = me.exists ? product.values(buffer)[own] : A(0);\n      if (active(in)) {",
        "      A h = me.exists ? product.values(buffer)[own] : A(0);\n      if (me.exists && r <= in.rows) {",
        "block",
    ),
    Mutation(
        "the gathered h_{t-1} has the stride of one direction",
        "cuda/around.cu",
        "output)[(s.before + r) * a.ldo + unit]",
        "output)[(s.before + r) * a.K + unit]",
        "stepwise",
    ),
    Mutation(
        "the second direction's h_{t-1} begins with the blocks of the first",
        "cuda/around.cu",
        "gather<T>(args.gather[1], block - of_first);",
        "gather<T>(args.gather[1], block);",
        "stepwise",
    ),
    Mutation(
        "b_hh is not added to the packed bias",
        "cuda/around.cu",
        "values[k] += element<T>(f.b, f.from, at(k));",
        "values[k] += Math<T>(0);",
        "stepwise",
    ),
    Mutation(
        "one element too many is filled",
        "cuda/around.cu",
        "if (at(k) >= f.count) return;",
        "if (at(k) > f.count) return;",
        "stepwise",
    ),
    Mutation(
        "bias gradients: no barrier between the warps' sums and who adds them up",
        "cuda/around.cu",
        "  sums[warp][lane] = sum;\n  __syncthreads();",
        "  sums[warp][lane] = sum;",
        "stepwise",
    ),
    Mutation(
        "bias gradients: a run goes on to the last row",
        "cuda/around.cu",
        "end < a.of.rows ? end : a.of.rows",
        "a.of.rows + 0 * end",
        "stepwise",
    ),
    Mutation(
        "bias gradients: b_hh's of the GRU stays rotated",
        "cuda/around.cu",
        "const int64_t rotated = column + a.rotation;",
        "const int64_t rotated = column;",
        "stepwise",
    ),
    Mutation(
        "bias gradients: b_ih's of the GRU from the recurrent columns",
        "cuda/around.cu",
        "const int64_t input = column - a.input_offset;",
        "const int64_t input = column;",
        "stepwise",
    ),
    Mutation(
        "block: the GRU's b_hn outside of what the reset gate multiplies",
        "cuda/block.cu",
        "q[G - 1] += bias[G];",
        "in.x[G - 1] += bias[G];",
        "block",
    ),
    Mutation(
        "block: no barrier between gate gradients and products",
        "cuda/block.cu",
        "      __syncthreads();\n      A sum[1];",
        "      A sum[1];",
        "block",
    ),
    Mutation(
        "block: a lane's own unit is not the first in the exchange",
        "cuda/block.cu",
        "return unit ^ u;",
        "return unit / kUnits * kUnits + u;",
        "block",
    ),
    Mutation(
        "block: the exchange stops at four lanes",
        "cuda/block.cu",
        "lanes < block_parts(kRows); lanes *= 2",
        "lanes < kBlockPairs; lanes *= 2",
        "block",
    ),
    Mutation(
        "block: weights in shared memory are those in registers again",
        "cuda/block.cu",
        "read(g, u, first + i);",
        "read(g, u, first - kHeld + i);",
        "block",
    ),
    Mutation(
        "block: backward, the first step of a chunk continues none",
        "cuda/block.cu",
        "lowest(s.begin > 0 ? -1 : 0)",
        "lowest(0)",
        "block",
    ),
    Mutation(
        "grid: published before the block's data",
        "cuda/grid.cu",
        "    part.published.publish();\n  }\n  for (int i",
        "    if (threadIdx.x == 0) add_release(grid.counters + blockIdx.y, 1);\n  }\n  for (int i",
        "grid",
    ),
    Mutation(
        "grid: no barrier after all have published",
        "cuda/grid.cu",
        "if (i > 0) part.published.wait(i);",
        "if (i > 0 && threadIdx.x == 0) spin_until([&] { return load_acquire(grid.counters + blockIdx.y) >= i * gridDim.x; });",
        "grid",
    ),
    Mutation(
        "grid: waits for the step before the last",
        "cuda/grid.cu",
        "if (i > 0) part.published.wait(i);",
        "if (i > 0) part.published.wait(i - 1);",
        "grid",
    ),
    Mutation(
        "grid: waits for a step that never comes",
        "cuda/grid.cu",
        "part.published.wait(i + 1);",
        "part.published.wait(i + 2);",
        "grid",
    ),
    Mutation(
        "grid: published without release order",
        "cuda/grid.cu",
        "    part.published.publish();\n  }\n  for (int i",
        "    __syncthreads();\n    if (threadIdx.x == 0) __atomic_fetch_add(grid.counters + blockIdx.y, 1, __ATOMIC_RELAXED);\n  }\n  for (int i",
        "grid",
    ),
    Mutation(
        "grid: the counter is loaded without acquire order",
        "cuda/grid.cu",
        "if (i > 0) part.published.wait(i);",
        "if (i > 0) { if (threadIdx.x == 0) spin_until([&] { return __atomic_load_n(grid.counters + blockIdx.y, __ATOMIC_RELAXED) >= i * gridDim.x; }); __syncthreads(); }",
        "grid",
    ),
    Mutation(
        "grid: no wait for the copies of h",
        "cuda/grid.cu",
        "  cp_async_wait<0>();\n",
        "",
        "grid",
    ),
    Mutation(
        "grid: vectors from odd addresses",
        "cuda/grid.cu",
        " && on_16_bytes(a.h_0)",
        "",
        "grid",
    ),
    Mutation(
        "ragged, grid: one row too many continues the step before",
        "cuda/grid.cu",
        "r < s.continued ? as<T>(a.output)",
        "r <= s.continued ? as<T>(a.output)",
        "grid",
    ),
    Mutation(
        "grid: no barrier between the copies of h and the sums",
        "cuda/grid.cu",
        "piece, vectors, h);\n      __syncthreads();",
        "piece, vectors, h);",
        "grid",
    ),
    Mutation(
        "grid: no barrier before the next piece of h",
        "cuda/grid.cu",
        "if (begin > 0) __syncthreads();",
        "",
        "grid",
    ),
    Mutation(
        "grid: the sum over the last piece of h alone",
        "cuda/grid.cu",
        "add ? *to + sums[i] : sums[i]",
        "add ? A(0) + sums[i] : sums[i]",
        "grid",
    ),
    Mutation(
        "grid: a tile's sums of more units than the block has",
        "cuda/grid.cu",
        "i < count && j < terms && b",
        "i < count && b",
        "grid",
    ),
    Mutation(
        "grid: no barrier between the sums and who adds them up",
        "cuda/grid.cu",
        "    __syncthreads();\n    for (int pair = threadIdx.x; pair < pairs",
        "    for (int pair = threadIdx.x; pair < pairs",
        "grid",
    ),
    Mutation(
        "grid: a tile's second slot is forgotten",
        "cuda/grid.cu",
        "to.slots = last - first + 1;",
        "to.slots = last >= first;",
        "grid",
    ),
    Mutation(
        "grid: the last block's partial grad_h is dropped",
        "cuda/grid.cu",
        "block < blocks ? load_run",
        "block < blocks - 1 ? load_run",
        "grid",
    ),
    Mutation(
        "grid: no barrier after what was received",
        "cuda/grid.cu",
        "    __syncthreads();\n  };",
        "  };",
        "grid",
    ),
    Mutation(
        "grid: no barrier between gate gradients and products",
        "cuda/grid.cu",
        "    __syncthreads();\n    A* const to = partials",
        "    A* const to = partials",
        "grid",
    ),
    Mutation(
        "grid: the partial sums have one buffer",
        "cuda/grid.cu",
        "i % 2 * one_buffer",
        "i * 0 * one_buffer",
        "grid",
        times=2,
    ),
    Mutation(
        "ragged, grid: grad_h of a row that has not been in a step yet",
        "cuda/grid.cu",
        "if (r < before) take(pair);",
        "if (r < active) take(pair);",
        "grid",
    ),
    Mutation(
        "grid: the reverse direction goes the other way through time",
        "cuda/grid.cu",
        "a.steps.reverse ? a.steps.begin + i : a.steps.end - 1 - i",
        "a.steps.reverse ? a.steps.end - 1 - i : a.steps.begin + i",
        "grid",
    ),
    Mutation(
        "mma: no wait for the asynchronous copies",
        "cuda/mma.cu",
        "      cp_async_wait<0>();\n",
        "",
        "mma",
    ),
    Mutation(
        "mma: rows of a tile in the wrong order of gates",
        "cuda/mma.cu",
        "const int gate = 2 * t + row / kUnits",
        "const int gate = 2 * t + 1 - row / kUnits",
        "mma",
    ),
    Mutation(
        "mma: two registers of a fragment swapped",
        "cuda/mma.cu",
        "const int row = lane / 4 + 8 * (f % 2), column = 2 * (lane % 4) + 8 * (f / 2);",
        "const int row = lane / 4 + 8 * (f / 2), column = 2 * (lane % 4) + 8 * (f % 2);",
        "mma",
    ),
    Mutation(
        "mma: fragments in shared memory are those in registers again",
        "cuda/mma.cu",
        "weight(t, here.first_step + kHeld + j)",
        "weight(t, here.first_step + j)",
        "mma",
    ),
    Mutation(
        "mma: backward, fragments in shared memory are those in registers again",
        "cuda/mma.cu",
        "w[j * 32] = weight(here.first_step + kHeld + j);",
        "w[j * 32] = weight(here.first_step + j);",
        "mma",
    ),
    Mutation(
        "mma: h is read from the buffer that is written",
        "cuda/mma.cu",
        "(several ? 0 : i % 2)",
        "(several ? 0 : (i + 1) % 2)",
        "mma",
    ),
    Mutation(
        "mma: no barrier between a step's h and the next step",
        "cuda/mma.cu",
        "    } else {\n      __syncthreads();\n    }\n    now = next;",
        "    }\n    now = next;",
        "mma",
    ),
    Mutation(
        "mma: no __syncwarp between copies and products",
        "cuda/mma.cu",
        "      if (own) {\n        __syncwarp();\n      } else {",
        "      if (!own) {",
        "mma",
    ),
    Mutation(
        "mma: no barrier between the groups' copies and products",
        "cuda/mma.cu",
        "      } else {\n        __syncthreads();\n      }",
        "      }",
        "mma",
    ),
    Mutation(
        "mma: no barrier between the splits' partial sums and who adds them",
        "cuda/mma.cu",
        "      __syncthreads();\n    }\n\n    T* const to = several",
        "    }\n\n    T* const to = several",
        "mma",
    ),
    Mutation(
        "mma: the GRU's x_n inside what the reset gate multiplies",
        "cuda/mma.cu",
        "const bool inside = C::kRecurrentBias && g == G - 1;",
        "const bool inside = false;",
        "mma",
        times=2,
    ),
    Mutation(
        "ragged, mma: one row too many continues the step before",
        "cuda/mma.cu",
        "r < s.continued ? as<T>(a.output)",
        "r <= s.continued ? as<T>(a.output)",
        "mma",
    ),
    Mutation(
        "mma: backward, d has one buffer",
        "cuda/mma.cu",
        "T* const to = d + i % 2 * d_size;",
        "T* const to = d;",
        "mma",
    ),
    Mutation(
        "mma: backward, waits for the step before",
        "cuda/mma.cu",
        "published.wait(i + 1);",
        "published.wait(i);",
        "mma",
    ),
    Mutation(
        "mma: backward, no barrier between gate gradients and products",
        "cuda/mma.cu",
        "      published.wait(i + 1);\n    } else {\n      __syncthreads();\n    }",
        "      published.wait(i + 1);\n    }",
        "mma",
    ),
    Mutation(
        "mma: backward, no barrier between the splits' partial sums and who adds them",
        "cuda/mma.cu",
        "sums[0][f] + sums[1][f];\n      }\n      __syncthreads();",
        "sums[0][f] + sums[1][f];\n      }",
        "mma",
    ),
]


def shell(command: str) -> None:
    result = subprocess.run(
        command, shell=True, cwd=BUILD, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{command}\n{result.stdout[-3000:]}{result.stderr[-3000:]}")


def build(mutation: Mutation, sanitizer: str) -> Path:
    """A folder with the package, its extension made of the mutated file."""
    source = ROOT / "csrc" / mutation.file
    text = source.read_text()
    if text.count(mutation.old) != mutation.times:
        raise SystemExit(
            f"{mutation.name}: {mutation.file} has the text {text.count(mutation.old)} times"
        )
    mutated = WORK / "csrc" / mutation.file
    mutated.parent.mkdir(parents=True, exist_ok=True)
    mutated.write_text(text.replace(mutation.old, mutation.new))

    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        if entry["file"] == str(source) and f"seqkern_host_kernels-{sanitizer}" in entry["command"]:
            break
    else:
        raise SystemExit(f"{mutation.file} is not in the build: run make cuda-host first")
    built = re.search(r"-o (\S+)", entry["command"])[1]
    made = WORK / "mutated.o"
    # A local include is looked for beside the file first, and none lies there.
    shell(
        entry["command"]
        .replace(f"-o {built}", f"-o {made}")
        .replace(f"-c {source}", f"-c {mutated}")
    )

    target = "seqkern_C" if sanitizer == "none" else f"seqkern_C-{sanitizer}"
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    listed = subprocess.run(
        [ninja, "-t", "commands", target], cwd=BUILD, capture_output=True, text=True, check=True
    )
    link = listed.stdout.splitlines()[-1]
    output = re.search(r"-o (\S+)", link)[1]
    folder = WORK / sanitizer
    if not folder.exists():
        shutil.copytree(RUN / "none", folder)
    library = folder / "seqkern" / Path(output).name
    shell(link.replace(f"-o {output}", f"-o {library}").replace(built, str(made)))
    return folder


def preloaded(*names: str) -> str:
    compiler = os.environ.get("CXX", "g++")
    return " ".join(
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    )


def found_by(mutation: Mutation) -> str:
    """The first check that fails, or ""."""
    tests = ROOT / "tests" / "cuda_host" / "test_cuda_host.py"
    stages = (
        ("none", mutation.tier, {}, []),
        (
            "thread",
            f"small_layers and {mutation.tier}",
            {
                "LD_PRELOAD": preloaded("libtsan.so"),
                "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1",
            },
            ["setarch", "-R"],
        ),
        (
            "address",
            f"(small_layers or ragged) and {mutation.tier}",
            {
                "LD_PRELOAD": preloaded("libasan.so", "libstdc++.so"),
                "ASAN_OPTIONS": "detect_leaks=0",
            },
            [],
        ),
    )
    for sanitizer, selection, environment, prefix in stages:
        folder = build(mutation, sanitizer)
        command = [*prefix, sys.executable, "-m", "pytest", "-q", "-x", "-rf", "--capture=sys"]
        command += [tests, "-k", selection]
        try:
            result = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "time limit"
        output = result.stdout + result.stderr
        if result.returncode == 0:
            continue
        if report := re.search(r"SUMMARY: (\w+Sanitizer: [\w -]+?) [/(]", output):
            return report[1]
        test = re.search(r"^FAILED \S+::(\w+)", output, re.MULTILINE)
        why = re.search(
            r"(cuda-host: deadlock|has other bits|error \S+, torch's|[Jj]acobian mismatch)",
            output,
        )
        meaning = {"cu": "deadlock", "ha": "differs between schedules", "er": "tolerance"}
        if test:
            return test[1] + (f": {meaning.get(why[1][:2], 'gradcheck')}" if why else "")
        if result.returncode < 0:
            return f"crash, signal {-result.returncode}"
        # No check failed: the run itself did.
        raise SystemExit(f"{mutation.name}: exit status {result.returncode}\n{output[-3000:]}")
    return ""


def write(found: dict[str, str]) -> None:
    """Rows of the page's table: new ones, and what stays of the others."""
    page = ROOT / "docs" / "cuda.md"
    text = page.read_text()
    begin = text.index(START) + len(START)
    end = text.index(END, begin)
    rows = {line.split("|")[1].strip(): line for line in text[begin:end].splitlines()[3:]}
    for m in MUTATIONS:
        if m.name in found:
            rows[m.name] = f"| {m.name} | `{m.file}` | {found[m.name]} |"
    listed = [rows[m.name] for m in MUTATIONS if m.name in rows]
    table = "\n".join(["| bug | in `csrc/` | first found by |", "|---|---|---|", *listed])
    page.write_text(f"{text[:begin]}\n{table}\n{text[end:]}")


def main() -> None:
    arguments = sys.argv[1:]
    names = [a for a in arguments if a != "--write"]
    if unknown := set(names) - {m.name for m in MUTATIONS}:
        raise SystemExit(f"no mutation is called {', '.join(sorted(unknown))}")
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    shutil.rmtree(WORK, ignore_errors=True)
    missed = []
    for mutation in chosen:
        check = found_by(mutation)
        print(f"{mutation.name}: {check or 'NOT FOUND'}", flush=True)
        if not check:
            missed.append(mutation.name)
        elif "--write" in arguments:
            write({mutation.name: check})
    if missed:
        raise SystemExit(f"{len(missed)} of {len(chosen)} mutations were not found")
    print(f"all {len(chosen)} mutations were found")


if __name__ == "__main__":
    main()
