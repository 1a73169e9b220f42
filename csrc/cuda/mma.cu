// The tensor-core kernels for bfloat16 and float16. W_hh is the M operand of m16n8k16 products,
// gates^T = W_hh h^T, so that kMmaRows rows of the batch fill two tiles' columns.
//
// A block takes kMmaRows rows and some groups of 8 units through a chunk. The rows of a group's
// tiles are ordered so that the accumulators of a lane hold all gates of its (unit, row) pairs:
// rows 0-7 of the first tile are gate 0 of the 8 units, rows 8-15 gate 1, and so on in the second
// tile. W_hh lies in shared memory in the order in which lanes need it. `splits` warps share a
// group's sum over k; their partial sums are added in a fixed order.
//
// Blocks that share rows exchange h through the output, with one flag each that counts published
// steps (as in grid.cu); where one block has all units, nobody waits for anybody.
//
// Backward, a block multiplies the gate gradients of its units with its rows of W_hh, transposed:
// a tile's rows are hidden units k, its columns rows of the batch. The blocks exchange partial sums
// of grad_h as in grid.cu.
#include "cuda/mma.h"

#include "cuda/pointwise.cuh"

namespace seqkern::cuda {

namespace {

constexpr int kRows = kMmaRows, kUnits = kMmaUnits, kColumns = 8;
constexpr int kRowTiles = kRows / kColumns;
// Pairs of a thread: one warp a group has the most.
constexpr int kPairs = kUnits * kRows / 32;

// Two 16-bit values, read as one.
typedef uint32_t __attribute__((may_alias)) Word;

SEQKERN_DEVICE int64_t first_row(const Steps& s) {
  return s.offsets ? s.offsets[s.begin] : s.begin * s.batch;
}

template <class C, class T>
SEQKERN_DEVICE void mma_forward(const Both<Forward>& args, const MmaMemory& m) {
  constexpr int G = C::kGates, kTiles = (G + 1) / 2, kSums = kTiles * kRowTiles * 4;
  const Forward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H), k_steps = (H + 15) / 16, stride = k_steps * 16 + 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int group = warp / m.splits, split = warp % m.splits;
  const int first_unit = blockIdx.x * m.groups * kUnits;
  const int64_t tile = int64_t{blockIdx.z} * kRows;
  uint32_t* const flags = m.flags + (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x;

  // weights[group][tile][k step][lane]: a lane's fragment. Then, one after the other in the same
  // place: h [row][k], padded so that the lanes' loads hit different banks; and the partial sums
  // [group][split][sum][lane].
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  uint4* const weights = reinterpret_cast<uint4*>(shared);
  const int fragments = m.groups * kTiles * k_steps * 32;
  T* const h = reinterpret_cast<T*>(weights + fragments);
  float* const partials = reinterpret_cast<float*>(weights + fragments);

  for (int i = threadIdx.x; i < fragments; i += blockDim.x) {
    const int l = i % 32, k_step = i / 32 % k_steps, t = i / 32 / k_steps % kTiles,
              owner = i / 32 / k_steps / kTiles;
    const int unit = first_unit + owner * kUnits + l / 4;
    uint32_t fragment[4];
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      const int gate = 2 * t + f % 2, k = k_step * 16 + 2 * (l % 4) + 8 * (f / 2);
      const bool there = gate < G && unit < H;
      const T* from = as<T>(a.w_hh) + (int64_t{gate} * H + unit) * H + k;
      const T zero = from_float<T>(0.f);
      fragment[f] = pack<T>(there && k < H ? from[0] : zero, there && k + 1 < H ? from[1] : zero);
    }
    weights[i] = make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
  }

  // A thread's (unit, row) pairs: `pair` counts the lanes' accumulators of all groups.
  const int pairs = m.groups * kUnits * kRows;
  const auto unit_of = [&](int pair) {
    return first_unit + pair / (kUnits * kRows) * kUnits + pair % 32 / 4;
  };
  const auto row_of = [&](int pair) {
    const int slot = pair / 32 % (kUnits * kRows / 32);  // row tile and column parity
    return slot / 2 * kColumns + 2 * (pair % 4) + slot % 2;
  };
  float c[kPairs] = {}, own_h[kPairs] = {};
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int pair = p * blockDim.x + threadIdx.x;
    const int64_t r = tile + row_of(pair);
    if (pair < pairs && unit_of(pair) < H && r < a.steps.batch) {
      own_h[p] = to_float(as<T>(a.h)[r * H + unit_of(pair)]);
      if constexpr (C::kHasCellState) c[p] = as<float>(a.c)[r * H + unit_of(pair)];
    }
  }

  const int64_t base = first_row(a.steps), steps = a.steps.end - a.steps.begin;
  const bool vectors = H % 8 == 0 && a.ldo % 8 == 0;
  for (int64_t i = 0; i < steps; ++i) {
    const Step s = step_at(a.steps, a.steps.reverse ? a.steps.end - 1 - i : a.steps.begin + i);
    const int active = static_cast<int>(s.rows - tile < kRows ? s.rows - tile : kRows);
    float x[kPairs][G] = {};  // on its way while the flags are waited for
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int pair = p * blockDim.x + threadIdx.x;
      if (pair < pairs && unit_of(pair) < H && row_of(pair) < active) {
        const float* from =
            as<float>(a.x) + (s.row - base + tile + row_of(pair)) * (G * H) + unit_of(pair);
#pragma unroll
        for (int g = 0; g < G; ++g) x[p][g] = from[g * H];
      }
    }
    if (i > 0 && gridDim.x > 1) {
      for (unsigned p = threadIdx.x; p < gridDim.x; p += blockDim.x) {
        spin_until([&] { return load_acquire(flags + p) >= static_cast<uint32_t>(i); });
      }
    }
    __syncthreads();
    // h_{t-1}; zeros past the end of a row and for rows that are not there.
    const auto row_at = [&](int b) {
      const int64_t r = tile + b;
      return r < s.continued ? as<T>(a.output) + (s.before + r) * a.ldo : as<T>(a.h_0) + r * H;
    };
    if (vectors) {
      const int per_row = k_steps * 2;
      for (int j = threadIdx.x; j < kRows * per_row; j += blockDim.x) {
        const int b = j / per_row, k = j % per_row * 8;
        const bool there = b < active && k < H;
        cp_async<16>(h + b * stride + k, there ? row_at(b) + k : as<T>(a.h_0), there ? 16 : 0);
      }
      cp_async_commit();
      cp_async_wait<0>();
    } else {
      for (int b = warp; b < kRows; b += blockDim.x / 32) {
        for (int k = lane; k < k_steps * 16; k += 32) {
          h[b * stride + k] = b < active && k < H ? row_at(b)[k] : from_float<T>(0.f);
        }
      }
    }
    __syncthreads();

    float sums[kTiles][kRowTiles][4] = {};
    if (active > 0) {
      const uint4* w = weights + group * kTiles * k_steps * 32 + lane;
      const T* column = h + lane / 4 * stride + 2 * (lane % 4);
#pragma unroll 2
      for (int k = split; k < k_steps; k += m.splits) {
        uint32_t b[kRowTiles][2];
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
          const T* from = column + n * kColumns * stride + k * 16;
          b[n][0] = *reinterpret_cast<const Word*>(from);
          b[n][1] = *reinterpret_cast<const Word*>(from + 8);
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint4 v = w[(t * k_steps + k) * 32];
          const uint32_t fragment[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int n = 0; n < kRowTiles; ++n) mma_m16n8k16<T>(sums[t][n], fragment, b[n]);
        }
      }
    }
    __syncthreads();  // h has been read: its place is free
    float* to = partials + (group * m.splits + split) * kSums * 32 + lane;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
        for (int f = 0; f < 4; ++f) to[((t * kRowTiles + n) * 4 + f) * 32] = sums[t][n][f];
      }
    }
    __syncthreads();

#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int pair = p * blockDim.x + threadIdx.x;
      if (pair < pairs && unit_of(pair) < H && row_of(pair) < active) {
        const int unit = unit_of(pair), slot = pair / 32 % (kUnits * kRows / 32);
        const float* from = partials + pair / (kUnits * kRows) * m.splits * kSums * 32 + pair % 32;
        float q[G] = {};
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const int sum = (g / 2 * kRowTiles + slot / 2) * 4 + 2 * (g % 2) + slot % 2;
          for (int k = 0; k < m.splits; ++k) q[g] += from[(k * kSums + sum) * 32];
        }
        add_bias<C>(as<float>(a.bias), H, unit, x[p], q);
        const int64_t row = s.row + tile + row_of(pair);
        const T rounded = from_float<T>(forward_unit<C, T>(a, row, unit, x[p], q, own_h[p], c[p]));
        as<T>(a.output)[row * a.ldo + unit] = rounded;
        own_h[p] = to_float(rounded);
      }
    }
    __syncthreads();
    if (gridDim.x > 1 && threadIdx.x == 0) {
      store_release(flags + blockIdx.x, static_cast<uint32_t>(i + 1));
    }
  }
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int pair = p * blockDim.x + threadIdx.x;
    const int64_t r = tile + row_of(pair);
    if (pair < pairs && unit_of(pair) < H && r < a.steps.batch) {
      as<T>(a.h)[r * H + unit_of(pair)] = from_float<T>(own_h[p]);
      if constexpr (C::kHasCellState) as<float>(a.c)[r * H + unit_of(pair)] = c[p];
    }
  }
}

// partials[buffer][row tile][direction][to block][from block][row][unit of the former], or, for one
// block, [row][unit] in shared memory.
template <class C, class T>
SEQKERN_DEVICE void mma_backward(const Both<Backward>& args, const MmaMemory& m) {
  constexpr int G = C::kGates;
  constexpr bool kCarries = C::kHasCellState || C::kCarriesGradH;
  const Backward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H), units = m.groups * kUnits, blocks = gridDim.x;
  const int tiles = (H + 15) / 16, j_steps = (G * units + 15) / 16, stride = j_steps * 16 + 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int first_unit = blockIdx.x * units;
  const int64_t tile = int64_t{blockIdx.z} * kRows;
  uint32_t* const flags = m.flags + (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x;

  // weights[tile][j step][lane]: a lane's fragment; this block's gate gradients [row][g*units + u].
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  uint4* const weights = reinterpret_cast<uint4*>(shared);
  const int fragments = tiles * j_steps * 32;
  T* const d = reinterpret_cast<T*>(weights + fragments);
  const T zero = from_float<T>(0.f);
  const auto weight = [&](int k, int j) {
    const int unit = first_unit + j % units;
    const bool there = k < H && j < G * units && unit < H;
    return there ? as<T>(a.w_hh)[(int64_t{j / units} * H + unit) * H + k] : zero;
  };
  for (int i = threadIdx.x; i < fragments; i += blockDim.x) {
    const int l = i % 32, j_step = i / 32 % j_steps, row = i / 32 / j_steps * 16 + l / 4;
    uint32_t fragment[4];
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      const int k = row + 8 * (f % 2), j = j_step * 16 + 2 * (l % 4) + 8 * (f / 2);
      fragment[f] = pack<T>(weight(k, j), weight(k, j + 1));
    }
    weights[i] = make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
  }
  for (int i = threadIdx.x; i < kRows * stride; i += blockDim.x) d[i] = zero;

  const int64_t one_pair = int64_t{kRows} * units, one_block = one_pair * blocks,
                one_set = one_block * blocks, one_buffer = one_set * gridDim.y * gridDim.z;
  float* const partials =
      blocks == 1 ? reinterpret_cast<float*>(d + kRows * stride)
                  : as<float>(m.partials) + (blockIdx.z * gridDim.y + blockIdx.y) * one_set;
  const auto buffer = [&](int64_t i) { return blocks == 1 ? int64_t{0} : i % 2 * one_buffer; };

  // A thread's (unit, row) pairs are of one unit, as the block's threads are a multiple of `units`.
  const int u = threadIdx.x % units, unit = first_unit + u;
  const auto row_of = [&](int p) {
    return static_cast<int>(threadIdx.x) / units + p * (32 / kUnits) * m.splits;
  };
  float grad_h[kPairs] = {}, grad_state[kPairs] = {};
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int64_t r = tile + row_of(p);
    if (row_of(p) < kRows && unit < H && r < a.steps.batch) {
      grad_h[p] = as<float>(a.grad_h)[r * H + unit];
      if constexpr (kCarries) grad_state[p] = as<float>(a.grad_state)[r * H + unit];
    }
  }

  const int64_t base = first_row(a.steps), steps = a.steps.end - a.steps.begin;
  int before = 0;  // rows of this block in the step that the pass took last
  // Takes over what all blocks sent after a step, in a fixed order.
  const auto receive = [&](int64_t i) {
    if (blocks > 1) {
      for (unsigned p = threadIdx.x; p < gridDim.x; p += blockDim.x) {
        spin_until([&] { return load_acquire(flags + p) >= static_cast<uint32_t>(i + 1); });
      }
    }
    __syncthreads();
    const float* from = partials + buffer(i) + blockIdx.x * one_block + threadIdx.x;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      if (unit < H && row_of(p) < before) grad_h[p] = 0;
    }
    for (int q = 0; q < blocks; ++q, from += one_pair) {
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        if (unit < H && row_of(p) < before) grad_h[p] += from[p * blockDim.x];
      }
    }
  };
  __syncthreads();
  for (int64_t i = 0; i < steps; ++i) {
    const Step s = step_at(a.steps, a.steps.reverse ? a.steps.begin + i : a.steps.end - 1 - i);
    const int active =
        static_cast<int>(s.rows - tile < 0 ? 0 : (s.rows - tile < kRows ? s.rows - tile : kRows));
    BackwardInput<C, T> in[kPairs];  // on its way while the flags are waited for
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      in[p] = unit < H && row_of(p) < active
                  ? read_backward<C, T>(a, s, tile + row_of(p), s.row - base, unit)
                  : BackwardInput<C, T>{};
    }
    if (i > 0) receive(i - 1);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int b = row_of(p);
      if (b < kRows && unit < H) {
        float gates[C::kGradGates] = {};
        if (b < active) {
          backward_unit<C, T>(a, s, tile + b, s.row - base, unit, in[p], grad_h[p], grad_state[p],
                              gates);
        }
#pragma unroll
        for (int g = 0; g < G; ++g) d[b * stride + g * units + u] = from_float<T>(gates[g]);
      }
    }
    __syncthreads();
    float* const to = partials + buffer(i) + blockIdx.x * one_pair;
    const T* column = d + lane / 4 * stride + 2 * (lane % 4);
    for (int t = warp; t < tiles && active > 0; t += warps) {
      float sums[kRowTiles][4] = {};
#pragma unroll 2
      for (int j = 0; j < j_steps; ++j) {
        const uint4 v = weights[(t * j_steps + j) * 32 + lane];
        const uint32_t fragment[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
          const T* from = column + n * kColumns * stride + j * 16;
          const uint32_t b[2] = {*reinterpret_cast<const Word*>(from),
                                 *reinterpret_cast<const Word*>(from + 8)};
          mma_m16n8k16<T>(sums[n], fragment, b);
        }
      }
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          const int k = t * 16 + lane / 4 + 8 * (f / 2), b = n * kColumns + 2 * (lane % 4) + f % 2;
          if (k < H && b < active) to[k / units * one_block + b * units + k % units] = sums[n][f];
        }
      }
    }
    __syncthreads();
    if (blocks > 1 && threadIdx.x == 0) {
      store_release(flags + blockIdx.x, static_cast<uint32_t>(i + 1));
    }
    before = active;
  }
  receive(steps - 1);
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int64_t r = tile + row_of(p);
    if (row_of(p) < kRows && unit < H && r < a.steps.batch) {
      as<float>(a.grad_h)[r * H + unit] = grad_h[p];
      if constexpr (kCarries) as<float>(a.grad_state)[r * H + unit] = grad_state[p];
    }
  }
}

}  // namespace

// ---- Kernels: seqkern_CELL_mma_PASS_TYPE(arguments, memory) ----

// Older architectures lack the instruction; the planner never chooses these kernels there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define SEQKERN_TENSOR_CORES(...) \
  if (false) __VA_ARGS__
#else
#define SEQKERN_TENSOR_CORES(...) __VA_ARGS__
#endif

#define SEQKERN_CELL_KERNELS(type, T, cell, C)                                    \
  extern "C" __global__ void __launch_bounds__(kMmaThreads, 1)                    \
      seqkern_##cell##_mma_forward_##type(SEQKERN_PARAMETER Both<Forward> args,   \
                                          MmaMemory memory) {                     \
    SEQKERN_TENSOR_CORES(mma_forward<C, T>(args, memory));                        \
  }                                                                               \
  extern "C" __global__ void __launch_bounds__(kMmaThreads, 1)                    \
      seqkern_##cell##_mma_backward_##type(SEQKERN_PARAMETER Both<Backward> args, \
                                           MmaMemory memory) {                    \
    SEQKERN_TENSOR_CORES(mma_backward<C, T>(args, memory));                       \
  }
#define SEQKERN_BOTH_TYPES(cell, C, _)      \
  SEQKERN_CELL_KERNELS(bf16, bf16, cell, C) \
  SEQKERN_CELL_KERNELS(f16, f16, cell, C)
SEQKERN_FOR_CELLS(SEQKERN_BOTH_TYPES, )

namespace {

template <class Args>
void launch_mma(void (*kernel)(Both<Args>, MmaMemory), const MmaShape& shape,
                const Both<Args>& args, MmaMemory memory, Stream stream) {
  const dim3 grid(shape.blocks, args.count, shape.row_tiles);
  const dim3 threads(32 * shape.groups * shape.splits);
  memory.groups = shape.groups;
  memory.splits = shape.splits;
  allow_shared_memory(kernel, shape.shared);
  if (shape.blocks > 1) {
    launch_cooperative(kernel, grid, threads, shape.shared, stream, args, memory);
  } else {
    launch(kernel, grid, threads, shape.shared, stream, args, memory);
  }
}

}  // namespace

#define SEQKERN_PAIR(cell, C, name) {seqkern_##cell##_##name##_bf16, seqkern_##cell##_##name##_f16},

void launch_mma_forward(Cell cell, Type type, const MmaShape& shape, const Both<Forward>& args,
                        const MmaMemory& memory, Stream stream) {
  static void (*const kKernels[kNumCells][2])(
      Both<Forward>, MmaMemory) = {SEQKERN_FOR_CELLS(SEQKERN_PAIR, mma_forward)};
  launch_mma(kKernels[int(cell)][type == Type::BF16 ? 0 : 1], shape, args, memory, stream);
}

void launch_mma_backward(Cell cell, Type type, const MmaShape& shape, const Both<Backward>& args,
                         const MmaMemory& memory, Stream stream) {
  static void (*const kKernels[kNumCells][2])(
      Both<Backward>, MmaMemory) = {SEQKERN_FOR_CELLS(SEQKERN_PAIR, mma_backward)};
  launch_mma(kKernels[int(cell)][type == Type::BF16 ? 0 : 1], shape, args, memory, stream);
}

}  // namespace seqkern::cuda
