// What goes on around the steps, in any tier: each launch takes all arrays and both directions, as
// a launch costs the host more than these arrays cost the GPU.
#include "cuda/around.h"

#include "cuda/pointwise.cuh"

namespace seqkern::cuda {

namespace {

constexpr int kEach = 4;      // elements that a thread fills
constexpr int kColumns = 32;  // of a block that sums rows: a warp's, which reads them side by side

SEQKERN_CELL int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Fills: a block has a run of one array's elements ----

SEQKERN_CELL int64_t fill_blocks(const Fill& fill, int threads) {
  return ceil_div(fill.count, int64_t{threads} * kEach);
}
int64_t fill_blocks(const Fills& fills, int threads) {
  int64_t blocks = 0;
  for (int i = 0; i < fills.count; ++i) blocks += fill_blocks(fills.fill[i], threads);
  return blocks;
}

template <class T>
SEQKERN_DEVICE Math<T> element(const void* from, Element type, int64_t i) {
  return type == Element::Store ? to_float(as<T>(from)[i]) : as<Math<T>>(from)[i];
}

template <class T>
SEQKERN_DEVICE void fill_run(const Fill& f, int64_t block) {
  const int64_t first = block * kEach * blockDim.x + threadIdx.x;
  const auto at = [&](int k) { return first + int64_t{k} * blockDim.x; };
  // All loads are on their way before the first store.
  Math<T> values[kEach]{};
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    if (f.a && at(k) < f.count) values[k] = element<T>(f.a, f.from, at(k));
    if (f.b && at(k) < f.count) values[k] += element<T>(f.b, f.from, at(k));
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    if (at(k) >= f.count) return;
    if (f.type == Element::Store) {
      as<T>(f.to)[at(k)] = from_float<T>(values[k]);
    } else if (f.type == Element::Math) {
      as<Math<T>>(f.to)[at(k)] = values[k];
    } else {
      as<uint32_t>(f.to)[at(k)] = 0;
    }
  }
}

// Whether the block was one of the fills'; if not, block becomes its number among the others.
template <class T>
SEQKERN_DEVICE bool fill(const Fills& fills, int64_t& block) {
  for (int i = 0; i < fills.count; ++i) {
    const int64_t blocks = fill_blocks(fills.fill[i], blockDim.x);
    if (block < blocks) {
      fill_run<T>(fills.fill[i], block);
      return true;
    }
    block -= blocks;
  }
  return false;
}

// ---- Gather: a block has some rows, or a part of one ----

struct Tile {
  int lanes, rows;  // threads of a row, rows of a block
  int64_t per_row;  // blocks of a row
};
SEQKERN_CELL Tile gather_tile(int64_t K) {
  const int lanes = K < kPrepareThreads ? static_cast<int>((K + 31) / 32 * 32) : kPrepareThreads;
  return {lanes, kPrepareThreads / lanes, ceil_div(K, lanes)};
}
SEQKERN_CELL int64_t gather_blocks(const Gather& a) {
  if (a.rows == 0) return 0;
  const Tile tile = gather_tile(a.K);
  return ceil_div(a.rows, tile.rows) * tile.per_row;
}

// The step that owns a row: the last one that starts at or before it.
SEQKERN_DEVICE int64_t step_of(const Steps& s, int64_t row) {
  if (!s.offsets) return row / s.batch;
  int64_t low = s.begin, high = s.end;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (s.offsets[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T>
SEQKERN_DEVICE void gather(const Gather& a, int64_t block) {
  const Tile tile = gather_tile(a.K);
  const int thread = threadIdx.x;
  const int64_t chunk_row = block / tile.per_row * tile.rows + thread / tile.lanes;
  const int64_t unit = block % tile.per_row * tile.lanes + thread % tile.lanes;
  if (thread / tile.lanes >= tile.rows || chunk_row >= a.rows || unit >= a.K) return;
  const int64_t row = a.row + chunk_row;
  const Step s = step_at(a.steps, step_of(a.steps, row));
  const int64_t r = row - s.row;
  as<T>(a.h_prev)[chunk_row * a.K + unit] = r < s.continued
                                                ? as<T>(a.output)[(s.before + r) * a.ldo + unit]
                                                : as<T>(a.h_0)[r * a.K + unit];
}

template <class T>
SEQKERN_DEVICE void prepare(const Prepare& args) {
  int64_t block = blockIdx.x;
  if (fill<T>(args.fills, block)) return;
  const int64_t of_first = gather_blocks(args.gather[0]);
  if (block < of_first) {
    gather<T>(args.gather[0], block);
  } else {
    gather<T>(args.gather[1], block - of_first);
  }
}

// ---- Sums over rows: the warps of a block take turns at them, each with all of its columns ----

template <class F>
SEQKERN_DEVICE auto sum_every(const F* from, int64_t begin, int64_t end, int64_t width) {
  constexpr int kStride = kFinishThreads / kColumns, kAtOnce = 8;
  decltype(to_float(F{})) sum{};
  // Eight loads are on their way before the first is waited for, also of the last rows: loads that
  // are there for all are not put off, as those with conditions are.
#pragma unroll 1
  for (int64_t first = begin; first < end; first += kAtOnce * kStride) {
    F values[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t row = first + k * kStride;
      values[k] = from[(row < end ? row : first) * width];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k * kStride < end) sum += to_float(values[k]);
    }
  }
  return sum;
}

// The sum over rows [begin, end) of a column, in the first warp. All threads of the block call it.
template <class T>
SEQKERN_DEVICE Math<T> sum_rows(const Rows& a, int64_t begin, int64_t end, int64_t column) {
  using A = Math<T>;
  constexpr int kWarps = kFinishThreads / kColumns;
  SEQKERN_SHARED(A, sums, [kWarps][kColumns]);
  const int warp = threadIdx.x / kColumns, lane = threadIdx.x % kColumns;
  A sum{};
  if (column < a.width) {
    sum = a.type == Element::Store ? sum_every(as<T>(a.from) + column, begin + warp, end, a.width)
                                   : sum_every(as<A>(a.from) + column, begin + warp, end, a.width);
  }
  sums[warp][lane] = sum;
  __syncthreads();
  sum = A(0);
  if (warp == 0) {
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += sums[i][lane];
  }
  return sum;
}

SEQKERN_CELL int64_t column_blocks(const Rows& a) { return ceil_div(a.width, kColumns); }

template <class T>
SEQKERN_DEVICE void run_sums(const Both<RunSums>& args) {
  const RunSums& a = args.direction[blockIdx.y];
  const int64_t across = column_blocks(a.of), run = blockIdx.x / across;
  const int64_t column = blockIdx.x % across * kColumns + threadIdx.x % kColumns;
  const int64_t begin = run * kSumRows, end = begin + kSumRows;
  if (begin >= a.of.rows) return;
  const Math<T> sum = sum_rows<T>(a.of, begin, end < a.of.rows ? end : a.of.rows, column);
  if (threadIdx.x < kColumns && column < a.of.width) {
    as<Math<T>>(a.sums)[run * a.of.width + column] = sum;
  }
}

template <class T>
SEQKERN_DEVICE void finish(const Finish& args) {
  int64_t block = blockIdx.x;
  if (fill<T>(args.fills, block)) return;
  const int64_t across = column_blocks(args.bias.direction[0].of);
  const BiasGrad& a = args.bias.direction[block / across];
  const int64_t column = block % across * kColumns + threadIdx.x % kColumns;
  const T sum = from_float<T>(sum_rows<T>(a.of, 0, a.of.rows, column));
  if (threadIdx.x >= kColumns || column >= a.of.width) return;
  const int64_t input = column - a.input_offset;
  if (input >= 0 && input < a.outputs) as<T>(a.b_ih)[input] = sum;
  if (column >= a.outputs) return;
  const int64_t rotated = column + a.rotation;
  as<T>(a.b_hh)[rotated < a.outputs ? rotated : rotated - a.outputs] = sum;
}

}  // namespace

// ---- Kernels: seqkern_NAME_TYPE(arguments) ----

#define SEQKERN_KERNELS(type, T, _)                                   \
  extern "C" __global__ void __launch_bounds__(kPrepareThreads)       \
      seqkern_prepare_##type(SEQKERN_PARAMETER Prepare args) {        \
    prepare<T>(args);                                                 \
  }                                                                   \
  extern "C" __global__ void __launch_bounds__(kFinishThreads)        \
      seqkern_run_sums_##type(SEQKERN_PARAMETER Both<RunSums> args) { \
    run_sums<T>(args);                                                \
  }                                                                   \
  extern "C" __global__ void __launch_bounds__(kFinishThreads)        \
      seqkern_finish_##type(SEQKERN_PARAMETER Finish args) {          \
    finish<T>(args);                                                  \
  }
SEQKERN_FOR_TYPES(SEQKERN_KERNELS, )

// ---- Launches ----

void launch_prepare(Type type, const Prepare& args, Stream stream) {
  static void (*const kKernels[kNumTypes])(Prepare) = {seqkern_prepare_f32, seqkern_prepare_f64,
                                                       seqkern_prepare_bf16, seqkern_prepare_f16};
  const int64_t blocks = fill_blocks(args.fills, kPrepareThreads) + gather_blocks(args.gather[0]) +
                         gather_blocks(args.gather[1]);
  if (blocks == 0) return;
  launch(kKernels[int(type)], dim3(static_cast<unsigned>(blocks)), dim3(kPrepareThreads), 0, stream,
         args);
}

void launch_run_sums(Type type, const Both<RunSums>& args, Stream stream) {
  static void (*const kKernels[kNumTypes])(Both<RunSums>) = {
      seqkern_run_sums_f32, seqkern_run_sums_f64, seqkern_run_sums_bf16, seqkern_run_sums_f16};
  const auto runs = [&](int d) { return sum_runs(args.direction[d].of.rows); };
  const int64_t most = args.count == 2 && runs(1) > runs(0) ? runs(1) : runs(0);
  if (most == 0) return;
  launch(kKernels[int(type)],
         dim3(static_cast<unsigned>(most * column_blocks(args.direction[0].of)), args.count),
         dim3(kFinishThreads), 0, stream, args);
}

void launch_finish(Type type, const Finish& args, Stream stream) {
  static void (*const kKernels[kNumTypes])(Finish) = {seqkern_finish_f32, seqkern_finish_f64,
                                                      seqkern_finish_bf16, seqkern_finish_f16};
  const int64_t blocks = fill_blocks(args.fills, kFinishThreads) +
                         args.bias.count * column_blocks(args.bias.direction[0].of);
  if (blocks == 0) return;
  launch(kKernels[int(type)], dim3(static_cast<unsigned>(blocks)), dim3(kFinishThreads), 0, stream,
         args);
}

}  // namespace seqkern::cuda
