// What docs/cuda.md's tables need and only C++ knows.
//
// With --predict: the planner's cost model for some shapes, as a table. With --layouts: where the
// fields of the kernels' parameters lie. With --shapes: launches of some layers.
//
// Without: theoretical occupancy, by NVIDIA's cuda_occupancy.h, which needs no GPU. Reads lines
//   kernel capability registers static_shared
// and prints for each
//   kernel capability threads dynamic_shared warps_per_multiprocessor most_warps
// with the launch shapes that csrc/cuda chooses. The others than stepwise kernels take the shared
// memory of the largest hidden size, a multiple of 16, that the device has room for with 16 rows, a
// block kernel of those with its rows and size.
#include <cuda_occupancy.h>

#include <climits>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/around.h"
#include "cuda/block.h"
#include "cuda/plan.h"
#include "gpus.h"

using namespace seqkern::cuda;
using seqkern::Cell;

namespace {

constexpr const char* kCells[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
constexpr const char* kTypes[] = {"f32", "f64", "bf16", "f16"};

struct Launch {
  int threads = 256;
  int64_t shared = 0;
};

Launch launch_of(const std::string& kernel, const DeviceProperties& d) {
  const bool block = kernel.find("_block_") != std::string::npos;
  const bool mma = kernel.find("_mma_") != std::string::npos;
  if (kernel.find("_prepare_") != std::string::npos) return {kPrepareThreads};
  if (kernel.find("_run_sums_") != std::string::npos) return {kFinishThreads};
  if (kernel.find("_finish_") != std::string::npos) return {kFinishThreads};
  if (!block && !mma && kernel.find("_grid_") == std::string::npos) return {};
  Problem p{Cell::Lstm, Type::F32, 16, 16, 16, 1, false};
  for (int i = 0; i < seqkern::kNumCells; ++i) {
    if (kernel.find(kCells[i]) != std::string::npos) p.cell = Cell(i);
  }
  for (int i = 0; i < kNumTypes; ++i) {
    if ((kernel + "_").find(std::string("_") + kTypes[i] + "_") != std::string::npos) {
      p.type = Type(i);
    }
  }
  const bool forward = kernel.find("forward") != std::string::npos;
  const Tier tier = block ? Tier::Block : mma ? Tier::Mma : Tier::Grid;
  int size = INT_MAX;
  if (block) {
    int rows = 0;
    if (std::sscanf(kernel.c_str() + kernel.rfind("_r"), "_r%d_h%d", &rows, &size) != 2) return {};
    p.B = int64_t{rows} * d.multiprocessors;  // with fewer rows the blocks would be too many
  }
  if (!supports(tier, p, d)) return {};
  p.backward = !forward;
  while (p.H <= size && supports(tier, p, d)) p.H = p.K = p.H + 16;
  p.H = p.K = p.H - 16;
  if (block) {
    const BlockShape shape = block_shape(p, d);
    return {shape.threads, shape.shared};
  }
  if (mma) {
    const MmaShape shape = mma_shape(p, d);
    return {32 * shape.groups * shape.splits, shape.shared};
  }
  const GridShape shape = grid_shape(p, d);
  return {shape.threads, shape.shared};
}

}  // namespace

// One direction; the record's figures, forward and backward, are from docs/cuda.md's list of
// sources.
struct Case {
  const char* what;
  Problem problem;
  const char *forward = "-", *backward = "-";
};
constexpr Case kCases[] = {
    {"LSTM B 6 H 40, f32", {Cell::Lstm, Type::F32, 6, 40, 40, 1, false}, "cuDNN 0.66"},
    {"LSTM B 6 H 72, f32", {Cell::Lstm, Type::F32, 6, 72, 72, 1, false}, "cuDNN 0.88"},
    {"LSTM B 16 H 128, f32", {Cell::Lstm, Type::F32, 16, 128, 128, 1, false}, "cuDNN 2.6"},
    {"GRU B 16 H 96, f32", {Cell::Gru, Type::F32, 16, 96, 96, 1, false}},
    {"LSTM B 16 H 768, f32",
     {Cell::Lstm, Type::F32, 16, 768, 768, 1, false},
     "haste 18.0",
     "haste 24.9"},
    {"LSTM B 16 H 128, bf16", {Cell::Lstm, Type::BF16, 16, 128, 128, 1, false}},
    {"LSTM B 16 H 768, bf16",
     {Cell::Lstm, Type::BF16, 16, 768, 768, 1, false},
     "FlashRNN 4.8",
     "FlashRNN 8.5"},
    {"LSTM B 16 H 768, f16",
     {Cell::Lstm, Type::F16, 16, 768, 768, 1, false},
     "cuDNN 2.0",
     "cuDNN 3.1"},
    {"GRU B 16 H 1024, bf16", {Cell::Gru, Type::BF16, 16, 1024, 1024, 1, false}},
    {"LSTM B 512 H 1024, bf16", {Cell::Lstm, Type::BF16, 512, 1024, 1024, 1, false}},
};

void print_predictions() {
  for (const bool backward : {false, true}) {
    std::printf(
        "%s| %s step of | device, tier | KiB through a multiprocessor's shared memory | KiB "
        "through "
        "L2 | KiB of DRAM | barriers, exchanges | instructions of a thread | predicted us | on "
        "record, us |\n|---|---|---|---|---|---|---|---|---|\n",
        backward ? "\n" : "", backward ? "backward" : "forward");
    for (const Case& c : kCases) {
      for (const Gpu* gpu : {&kA100, &kH100}) {
        Problem p = c.problem;
        p.backward = backward;
        const Plan plan = make_plan(p, gpu->properties);
        const Cost cost = predict(plan.tier, p, gpu->properties);
        std::printf("| %s | %s, %s | %.0f | %.0f | %.0f | %d, %d | %.0f | %.1f | %s |\n", c.what,
                    gpu->name, name(plan.tier), cost.shared_bytes / KiB, cost.l2_bytes / KiB,
                    cost.dram_bytes / KiB, cost.barriers, cost.exchanges, cost.instructions,
                    cost.nanoseconds / 1000,
                    gpu == &kA100 ? ""
                    : backward    ? c.backward
                                  : c.forward);
      }
    }
  }
}

// ---- Parameters ----

struct Field {
  const char* name;
  size_t offset, size, alignment;
};

// Throws where fields are missing: each must begin where the one before ends.
void print_layout(const char* name, size_t size, size_t alignment,
                  const std::vector<Field>& fields) {
  std::printf("| `%s` | %zu |", name, size);
  size_t end = 0;
  const auto next = [&](size_t a) { return (end + a - 1) / a * a; };
  for (const Field& f : fields) {
    if (f.offset != next(f.alignment)) {
      throw std::runtime_error(std::string("a field of ") + name + " before " + f.name);
    }
    std::printf("%s %s %zu", end ? "," : "", f.name, f.offset);
    end = f.offset + f.size;
  }
  if (size != next(alignment))
    throw std::runtime_error(std::string("fields at the end of ") + name);
  std::printf(" |\n");
}

template <class Struct, class T, class Owner>
Field field(const char* name, T Owner::* member) {
  static constexpr Struct kEmpty{};
  const auto at = [](const auto* p) { return reinterpret_cast<const char*>(p); };
  return {name, size_t(at(&(kEmpty.*member)) - at(&kEmpty)), sizeof(T),
          alignof(std::remove_all_extents_t<T>)};
}
#define FIELD(name) field<Struct>(#name, &Struct::name)

void print_layouts() {
  std::printf("| struct | bytes | fields and their offsets |\n|---|---|---|\n");
  {
    using Struct = Steps;
    print_layout(
        "Steps", sizeof(Struct), alignof(Struct),
        {FIELD(offsets), FIELD(batch), FIELD(total), FIELD(begin), FIELD(end), FIELD(reverse)});
  }
  {
    using Struct = Step;
    print_layout("Step", sizeof(Struct), alignof(Struct),
                 {FIELD(row), FIELD(rows), FIELD(before), FIELD(continued)});
  }
  {
    using Struct = Forward;
    print_layout("Forward", sizeof(Struct), alignof(Struct),
                 {FIELD(steps), FIELD(H), FIELD(K), FIELD(x), FIELD(bias), FIELD(w_hh), FIELD(h_0),
                  FIELD(h), FIELD(c), FIELD(c_n), FIELD(output), FIELD(ldo), FIELD(gates),
                  FIELD(cells), FIELD(hidden)});
  }
  {
    using Struct = Backward;
    print_layout("Backward", sizeof(Struct), alignof(Struct),
                 {FIELD(steps), FIELD(H), FIELD(K), FIELD(grad_output), FIELD(output), FIELD(ldo),
                  FIELD(gates), FIELD(cells), FIELD(h_0), FIELD(c_0), FIELD(w_hh), FIELD(grad_h),
                  FIELD(projected), FIELD(grad_state), FIELD(grad_gates), FIELD(grad_projected_h),
                  FIELD(hidden), FIELD(step_grad_h), FIELD(step_grad_c)});
  }
  {
    using Struct = Both<Forward>;
    print_layout("Both<Forward>", sizeof(Struct), alignof(Struct),
                 {FIELD(direction), FIELD(count)});
  }
  {
    using Struct = Both<Backward>;
    print_layout("Both<Backward>", sizeof(Struct), alignof(Struct),
                 {FIELD(direction), FIELD(count)});
  }
  {
    using Struct = StepForward;
    print_layout("StepForward", sizeof(Struct), alignof(Struct),
                 {FIELD(direction), FIELD(count), FIELD(product), FIELD(step)});
  }
  {
    using Struct = StepBackward;
    print_layout("StepBackward", sizeof(Struct), alignof(Struct),
                 {FIELD(direction), FIELD(count), FIELD(step)});
  }
  {
    using Struct = GridMemory;
    print_layout("GridMemory", sizeof(Struct), alignof(Struct),
                 {FIELD(counters), FIELD(partials), FIELD(units), FIELD(piece), FIELD(sources)});
  }
  {
    using Struct = MmaMemory;
    print_layout("MmaMemory", sizeof(Struct), alignof(Struct),
                 {FIELD(counters), FIELD(exchange), FIELD(rows), FIELD(groups), FIELD(splits)});
  }
  {
    using Struct = Fill;
    print_layout("Fill", sizeof(Struct), alignof(Struct),
                 {FIELD(a), FIELD(b), FIELD(to), FIELD(count), FIELD(from), FIELD(type)});
  }
  {
    using Struct = Fills;
    print_layout("Fills", sizeof(Struct), alignof(Struct), {FIELD(fill), FIELD(count)});
  }
  {
    using Struct = Gather;
    print_layout("Gather", sizeof(Struct), alignof(Struct),
                 {FIELD(steps), FIELD(K), FIELD(row), FIELD(rows), FIELD(output), FIELD(ldo),
                  FIELD(h_0), FIELD(h_prev)});
  }
  {
    using Struct = Prepare;
    print_layout("Prepare", sizeof(Struct), alignof(Struct), {FIELD(fills), FIELD(gather)});
  }
  {
    using Struct = Rows;
    print_layout("Rows", sizeof(Struct), alignof(Struct),
                 {FIELD(from), FIELD(rows), FIELD(width), FIELD(type)});
  }
  {
    using Struct = RunSums;
    print_layout("RunSums", sizeof(Struct), alignof(Struct), {FIELD(of), FIELD(sums)});
  }
  {
    using Struct = Both<RunSums>;
    print_layout("Both<RunSums>", sizeof(Struct), alignof(Struct),
                 {FIELD(direction), FIELD(count)});
  }
  {
    using Struct = BiasGrad;
    print_layout("BiasGrad", sizeof(Struct), alignof(Struct),
                 {FIELD(of), FIELD(outputs), FIELD(input_offset), FIELD(rotation), FIELD(b_ih),
                  FIELD(b_hh)});
  }
  {
    using Struct = Both<BiasGrad>;
    print_layout("Both<BiasGrad>", sizeof(Struct), alignof(Struct),
                 {FIELD(direction), FIELD(count)});
  }
  {
    using Struct = Finish;
    print_layout("Finish", sizeof(Struct), alignof(Struct), {FIELD(fills), FIELD(bias)});
  }
  {
    using Struct = Activate;
    print_layout("Activate", sizeof(Struct), alignof(Struct),
                 {FIELD(H), FIELD(rows), FIELD(x), FIELD(product), FIELD(bias), FIELD(gates)});
  }
}

// ---- Launches ----

void print_shape(const Problem& p, const Gpu& gpu, Tier tier) {
  const DeviceProperties& d = gpu.properties;
  if (!supports(tier, p, d)) throw std::runtime_error("a shape that the tier does not support");
  const char* const pass = p.backward ? "backward" : "forward";
  const BlockShape b = block_shape(p, d);
  const std::string suffix =
      tier == Tier::Block ? "_r" + std::to_string(b.rows) + "_h" + std::to_string(b.size) : "";
  std::printf("| `%s_%s_%s_%s%s` | %s, B %d, H %d, D %d | ", kCells[int(p.cell)], name(tier), pass,
              kTypes[int(p.type)], suffix.c_str(), gpu.name, int(p.B), int(p.H), p.directions);
  if (tier == Tier::Block) {
    std::printf("(%d, %d, 1) | %d | %d | - | - | - |\n", int((p.B + b.rows - 1) / b.rows),
                p.directions, b.threads, int(b.shared));
  } else if (tier == Tier::Grid) {
    const GridShape s = grid_shape(p, d);
    std::printf("(%d, %d, 1) | %d | %d | %d | %d | units %d, piece %d, sources %d |\n", s.blocks,
                p.directions, s.threads, int(s.shared), p.directions, int(s.partials), s.units,
                s.piece, s.sources);
  } else {
    const MmaShape s = mma_shape(p, d);
    std::printf("(%d, %d, %d) | %d | %d | %d | %d | rows %d, groups %d, splits %d |\n", s.blocks,
                p.directions, s.row_tiles, 32 * s.groups * s.splits, int(s.shared),
                p.directions * s.row_tiles, int(s.exchange), s.rows, s.groups, s.splits);
  }
}

void print_shapes() {
  std::printf(
      "| kernel | for | grid | threads | bytes of shared memory | `counters` | `partials`, "
      "`exchange` "
      "| set by the launch |\n|---|---|---|---|---|---|---|---|\n");
  for (const bool backward : {false, true}) {
    const auto problem = [&](Cell cell, Type type, int64_t B, int64_t H, int directions) {
      return Problem{cell, type, B, H, H, directions, false, backward};
    };
    print_shape(problem(Cell::Lstm, Type::F32, 5, 9, 2), kA100, Tier::Block);
    print_shape(problem(Cell::Gru, Type::F32, 250, 100, 1), kA100, Tier::Block);
    print_shape(problem(Cell::Gru, Type::F64, 5, 9, 1), kA100, Tier::Block);
    print_shape(problem(Cell::Lstm, Type::F32, 5, 9, 2), kA100, Tier::Grid);
    print_shape(problem(Cell::Gru, Type::F32, 5, 300, 1), kA100, Tier::Grid);
    print_shape(problem(Cell::Lstm, Type::BF16, 5, 24, 2), kA100, Tier::Mma);
    print_shape(problem(Cell::Lstm, Type::BF16, 18, 300, 1), kA100, Tier::Mma);
  }
}

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  if (what == "--predict") print_predictions();
  if (what == "--layouts") print_layouts();
  if (what == "--shapes") print_shapes();
  if (argc > 1) return 0;
  char kernel[200];
  int capability = 0, registers = 0;
  size_t shared = 0;
  while (std::scanf("%199s %d %d %zu", kernel, &capability, &registers, &shared) == 4) {
    const Gpu* gpu = nullptr;
    for (const Gpu& g : kGpus) {
      if (10 * g.properties.major + g.properties.minor == capability) gpu = &g;
    }
    if (!gpu) {
      std::fprintf(stderr, "no device of capability %d in tests/cpp/gpus.h\n", capability);
      return 1;
    }
    const DeviceProperties& d = gpu->properties;
    const Launch launch = launch_of(kernel, d);

    cudaOccDeviceProp properties;
    properties.computeMajor = d.major;
    properties.computeMinor = d.minor;
    properties.maxThreadsPerBlock = 1024;
    properties.maxThreadsPerMultiprocessor = d.threads_per_multiprocessor;
    properties.regsPerBlock = properties.regsPerMultiprocessor = d.registers_per_multiprocessor;
    properties.warpSize = 32;
    properties.sharedMemPerBlock = d.shared_per_block;
    properties.sharedMemPerMultiprocessor = d.shared_per_multiprocessor;
    properties.numSms = d.multiprocessors;
    properties.sharedMemPerBlockOptin = d.shared_per_block_optin;
    properties.reservedSharedMemPerBlock = d.major >= 8 ? 1024 : 0;
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = INT_MAX;
    function.numRegs = registers;
    function.sharedSizeBytes = shared;
    function.partitionedGCConfig = PARTITIONED_GC_OFF;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = launch.shared;
    function.numBlockBarriers = 1;
    const cudaOccDeviceState state;
    cudaOccResult result;
    const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(
        &result, &properties, &function, &state, launch.threads, launch.shared);
    if (error != CUDA_OCC_SUCCESS) {
      std::fprintf(stderr, "%s on sm_%d: cuda_occupancy.h says error %d\n", kernel, capability,
                   int(error));
      return 1;
    }
    std::printf("%s %d %d %lld %d %d\n", kernel, capability, launch.threads,
                static_cast<long long>(launch.shared),
                result.activeBlocksPerMultiprocessor * launch.threads / 32,
                d.threads_per_multiprocessor / 32);
  }
}
