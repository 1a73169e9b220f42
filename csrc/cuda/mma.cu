// The tensor-core kernels for bfloat16 and float16. W_hh is the M operand of m16n8k16 products,
// gates^T = W_hh h^T, so that kMmaRows rows of the batch fill two tiles' columns.
//
// A block takes kMmaRows rows and some groups of 8 units through a chunk. The rows of a group's
// tiles are ordered so that the accumulators of a lane hold all gates of its (unit, row) pairs:
// rows 0-7 of the first tile are gate 0 of the 8 units, rows 8-15 gate 1, and so on in the second
// tile. `splits` warps share a group's sum over k, each a run of it; their partial sums are added
// in a fixed order. Where one warp has all of k, its lanes go on with what they have.
//
// A warp keeps the first fragments of its share of W_hh in registers (mma.h), the others lie in
// shared memory in the order in which its lanes need them.
//
// Blocks that share rows exchange h through the output, with one flag each that counts published
// steps (as in grid.cu); where one block has all units, h stays in its shared memory and nobody
// waits for anybody.
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
// The (unit, row) pairs of a group, as so many for each lane of a warp; with splits several warps
// share them.
constexpr int kSlots = kUnits * kRows / 32;
template <bool kSplit>
inline constexpr int kPairsOf = kSplit ? kSlots / 2 : kSlots;

// Two 16-bit values, read as one.
typedef uint32_t __attribute__((may_alias)) Word;

SEQKERN_DEVICE int64_t first_row(const Steps& s) {
  return s.offsets ? s.offsets[s.begin] : s.begin * s.batch;
}

// A lane's part of a 16 x 16 tile of the M operand; value(row, column) is the matrix.
template <class T, class F>
SEQKERN_DEVICE uint4 fragment_of(int lane, F value) {
  uint32_t r[4];
#pragma unroll
  for (int f = 0; f < 4; ++f) {
    const int row = lane / 4 + 8 * (f % 2), column = 2 * (lane % 4) + 8 * (f / 2);
    r[f] = pack<T>(value(row, column), value(row, column + 1));
  }
  return make_uint4(r[0], r[1], r[2], r[3]);
}

// sums[16][rows] += weights[16][16] columns[16][rows], where a lane's columns begin at `from`.
template <class T>
SEQKERN_DEVICE void multiply(float (&sums)[kRowTiles][4], const uint4& weights, const T* from,
                             int stride) {
  const uint32_t a[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
    const T* column = from + n * kColumns * stride;
    const uint32_t b[2] = {*reinterpret_cast<const Word*>(column),
                           *reinterpret_cast<const Word*>(column + 8)};
    mma_m16n8k16<T>(sums[n], a, b);
  }
}

template <class C, class T, bool kSplit>
SEQKERN_DEVICE void forward_in(const Both<Forward>& args, const MmaMemory& m) {
  constexpr int G = C::kGates, kTiles = (G + 1) / 2, kSums = kTiles * kRowTiles * 4;
  constexpr int kPairs = kPairsOf<kSplit>, kHeld = kMmaHeldForward<kSplit> / kTiles;  // steps of k
  const Forward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H), k_steps = (H + 15) / 16, stride = k_steps * 16 + 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int group = warp / m.splits, split = warp % m.splits;
  const int units = m.groups * kUnits, first_unit = blockIdx.x * units;
  const int64_t tile = int64_t{blockIdx.z} * kRows;
  const bool several = gridDim.x > 1;
  uint32_t* const flags = m.flags + (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x;

  // This warp's steps of k, and how many of these every warp has in shared memory.
  const int share = (k_steps + m.splits - 1) / m.splits, first_k = split * share;
  const int last_k = first_k + share < k_steps ? first_k + share : k_steps;
  const int rest = share > kHeld ? share - kHeld : 0;

  // weights[warp][step of k][tile][lane]: a lane's fragment; h [buffer][row][k], padded so that the
  // lanes' loads hit different banks, two buffers where h stays here; with splits the partial sums
  // [warp][sum][lane].
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  uint4* const weights = reinterpret_cast<uint4*>(shared);
  const int fragments = warps * rest * kTiles * 32, h_size = kRows * stride;
  T* const h = reinterpret_cast<T*>(weights + fragments);
  float* const partials = reinterpret_cast<float*>(h + (several ? 1 : 2) * h_size);

  const T zero = from_float<T>(0.f);
  const auto weight = [&](int t, int k_step) {
    return fragment_of<T>(lane, [&](int row, int column) {
      const int gate = 2 * t + row / kUnits, unit = first_unit + group * kUnits + row % kUnits;
      const int k = k_step * 16 + column;
      return gate < G && unit < H && k < H && k_step < last_k
                 ? as<T>(a.w_hh)[(int64_t{gate} * H + unit) * H + k]
                 : zero;
    });
  };
  uint4 held[kHeld][kTiles];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) held[j][t] = weight(t, first_k + j);
  }
  uint4* const w = weights + warp * rest * kTiles * 32 + lane;
  for (int j = 0; j < rest; ++j) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) w[(j * kTiles + t) * 32] = weight(t, first_k + kHeld + j);
  }
  if (!several) {
    for (int i = threadIdx.x; i < 2 * h_size; i += blockDim.x) h[i] = zero;
    __syncthreads();
  }

  // A thread's (unit, row) pairs: those of its warp's group, or with splits of the groups in turn.
  const auto slot_at = [&](int p) { return kSplit ? p * warps + warp : group * kSlots + p; };
  const auto group_of = [&](int p) { return kSplit ? slot_at(p) / kSlots : group; };
  const auto unit_of = [&](int p) { return first_unit + group_of(p) * kUnits + lane / 4; };
  const auto row_of = [&](int p) {
    const int slot = slot_at(p) % kSlots;  // row tile and column parity
    return slot / 2 * kColumns + 2 * (lane % 4) + slot % 2;
  };
  const auto exists = [&](int p) { return group_of(p) < m.groups && unit_of(p) < H; };
  float c[kPairs] = {}, own_h[kPairs] = {};
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int unit = unit_of(p);
    const int64_t r = tile + row_of(p);
    if (exists(p) && r < a.steps.batch) {
      own_h[p] = to_float(as<T>(a.h)[r * H + unit]);
      if (!several) h[row_of(p) * stride + unit] = as<T>(a.h)[r * H + unit];
      if constexpr (C::kHasCellState) c[p] = as<float>(a.c)[r * H + unit];
    }
  }
  __syncthreads();

  const int64_t base = first_row(a.steps), steps = a.steps.end - a.steps.begin;
  const bool vectors = H % 8 == 0 && a.ldo % 8 == 0 && on_16_bytes(a.output) && on_16_bytes(a.h_0);
  int buffer = 0;
  for (int64_t i = 0; i < steps; ++i) {
    const Step s = step_at(a.steps, a.steps.reverse ? a.steps.end - 1 - i : a.steps.begin + i);
    const int active = static_cast<int>(s.rows - tile < kRows ? s.rows - tile : kRows);
    // On their way while the flags are waited for. Without splits the sums begin with what is
    // added to the product anyway: x of a gate is that, but for one inside whose product a bias is.
    float x[kPairs][G] = {}, sums[kTiles][kRowTiles][4] = {};
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int unit = unit_of(p);
      if (exists(p) && row_of(p) < active) {
        const float* from = as<float>(a.x) + (s.row - base + tile + row_of(p)) * (G * H) + unit;
#pragma unroll
        for (int g = 0; g < G; ++g) x[p][g] = from[g * H];
        if constexpr (!kSplit) {
          float q[G] = {};
          add_bias<C>(as<float>(a.bias), H, unit, x[p], q);
#pragma unroll
          for (int g = 0; g < G; ++g) {
            const bool apart = C::kRecurrentBias && g == G - 1;
            sums[g / 2][p / 2][2 * (g % 2) + p % 2] = apart ? q[g] : x[p][g];
            if (!apart) x[p][g] = 0;
          }
        }
      }
    }
    if (several) {
      // h_{t-1}, a run of k a warp, once the blocks that make it have published it; zeros past the
      // end of a row and for rows that are not there. Each lane waits for other blocks.
      const int run = (k_steps + warps - 1) / warps * 16;
      const int begin = warp * run, end = begin + run < k_steps * 16 ? begin + run : k_steps * 16;
      if (i > 0) {
        for (int p = begin / units + lane; p * units < end && p < static_cast<int>(gridDim.x);
             p += 32) {
          spin_until([&] { return load_acquire(flags + p) >= static_cast<uint32_t>(i); });
        }
        __syncwarp();
      }
      // Two lanes a row.
      const int b = lane / 2;
      const int64_t r = tile + b;
      const T* const from =
          r < s.continued ? as<T>(a.output) + (s.before + r) * a.ldo : as<T>(a.h_0) + r * H;
      T* const to = h + b * stride;
      if (vectors) {
        for (int k = begin + lane % 2 * 8; k < end; k += 16) {
          const bool there = b < active && k < H;
          cp_async<16>(to + k, there ? from + k : as<T>(a.h_0), there ? 16 : 0);
        }
        cp_async_commit();
        cp_async_wait<0>();
      } else {
        for (int k = begin + lane % 2; k < end; k += 2) {
          to[k] = b < active && k < H ? from[k] : zero;
        }
      }
      // The runs are those that the warps sum over.
      if (m.groups == 1) {
        __syncwarp();
      } else {
        __syncthreads();
      }
    }

    if (active > 0) {
      const T* column = h + buffer * h_size + lane / 4 * stride + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        if (first_k + j < last_k) {
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            multiply(sums[t], held[j][t], column + (first_k + j) * 16, stride);
          }
        }
      }
#pragma unroll 1
      for (int k = first_k + kHeld; k < last_k; ++k) {
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply(sums[t], w[((k - first_k - kHeld) * kTiles + t) * 32], column + k * 16, stride);
        }
      }
    }
    if constexpr (kSplit) {
      float* to = partials + warp * kSums * 32 + lane;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
          for (int f = 0; f < 4; ++f) to[((t * kRowTiles + n) * 4 + f) * 32] = sums[t][n][f];
        }
      }
      __syncthreads();
    }

    if (!several) buffer ^= 1;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int unit = unit_of(p), b = row_of(p);
      if (exists(p) && b < active) {
        float q[G] = {};
#pragma unroll
        for (int g = 0; g < G; ++g) {
          if constexpr (!kSplit) {
            q[g] = sums[g / 2][p / 2][2 * (g % 2) + p % 2];
          } else {
            const int slot = slot_at(p) % kSlots;
            const int sum = (g / 2 * kRowTiles + slot / 2) * 4 + 2 * (g % 2) + slot % 2;
            const float* from = partials + (group_of(p) * m.splits * kSums + sum) * 32 + lane;
            for (int k = 0; k < m.splits; ++k) q[g] += from[k * kSums * 32];
          }
        }
        if constexpr (kSplit) add_bias<C>(as<float>(a.bias), H, unit, x[p], q);
        const int64_t row = s.row + tile + b;
        const T rounded = from_float<T>(forward_unit<C, T>(a, row, unit, x[p], q, own_h[p], c[p]));
        as<T>(a.output)[row * a.ldo + unit] = rounded;
        own_h[p] = to_float(rounded);
      }
      if (!several && exists(p)) {
        h[buffer * h_size + b * stride + unit] = from_float<T>(own_h[p]);
      }
    }
    __syncthreads();
    if (several && threadIdx.x == 0) {
      store_release(flags + blockIdx.x, static_cast<uint32_t>(i + 1));
    }
  }
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int64_t r = tile + row_of(p);
    if (exists(p) && r < a.steps.batch) {
      as<T>(a.h)[r * H + unit_of(p)] = from_float<T>(own_h[p]);
      if constexpr (C::kHasCellState) as<float>(a.c)[r * H + unit_of(p)] = c[p];
    }
  }
}

template <class C, class T>
SEQKERN_DEVICE void mma_forward(const Both<Forward>& args, const MmaMemory& m) {
  if (m.splits == 1) {
    forward_in<C, T, false>(args, m);
  } else {
    forward_in<C, T, true>(args, m);
  }
}

// partials[buffer][row tile][direction][to block][from block][row][unit of the former], or, for one
// block, [row][unit] in shared memory.
template <class C, class T, bool kSplit>
SEQKERN_DEVICE void backward_in(const Both<Backward>& args, const MmaMemory& m) {
  constexpr int G = C::kGates, kPairs = kPairsOf<kSplit>;
  constexpr bool kCarries = C::kHasCellState || C::kCarriesGradH;
  const Backward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H), units = m.groups * kUnits, blocks = gridDim.x;
  const int tiles = (H + 15) / 16, j_steps = (G * units + 15) / 16, stride = j_steps * 16 + 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int first_unit = blockIdx.x * units;
  const int64_t tile = int64_t{blockIdx.z} * kRows;
  uint32_t* const flags = m.flags + (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x;

  // The warp's tiles are warp, warp + warps, ... Of the first of these the first j steps are in
  // registers and `rest` in shared memory, of the others all.
  constexpr int kTiles = kMmaHeldTiles<kSplit>, kHeld = kMmaHeldSteps;
  const int rest = j_steps > kHeld ? j_steps - kHeld : 0;
  const int short_tiles = tiles < kTiles * warps ? tiles : kTiles * warps;

  // weights[tile][j step][lane]: a lane's fragment; this block's gate gradients [row][g*units + u].
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  uint4* const weights = reinterpret_cast<uint4*>(shared);
  const int fragments = (short_tiles * rest + (tiles - short_tiles) * j_steps) * 32;
  T* const d = reinterpret_cast<T*>(weights + fragments);
  const T zero = from_float<T>(0.f);
  const auto weight = [&](int t, int j_step) {
    return fragment_of<T>(lane, [&](int row, int column) {
      const int k = t * 16 + row, j = j_step * 16 + column, unit = first_unit + j % units;
      const bool there = k < H && j < G * units && unit < H;
      return there ? as<T>(a.w_hh)[(int64_t{j / units} * H + unit) * H + k] : zero;
    });
  };
  // Of a tile's j steps those that lie in shared memory, of a lane.
  const auto stored = [&](int t) {
    return weights + lane +
           (t < short_tiles ? t * rest : short_tiles * rest + (t - short_tiles) * j_steps) * 32;
  };
  uint4 held[kTiles + 1][kHeld];  // not of size 0
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) held[n][j] = weight(warp + n * warps, j);
  }
  for (int t = warp; t < tiles; t += warps) {
    const int first = t < short_tiles ? kHeld : 0;
    uint4* const to = stored(t);
    for (int j = first; j < j_steps; ++j) to[(j - first) * 32] = weight(t, j);
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
      __syncthreads();
    }
    const float* from = partials + buffer(i) + blockIdx.x * one_block + threadIdx.x;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      if (unit < H && row_of(p) < before) grad_h[p] = 0;
    }
#pragma unroll 4
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
    // grad_h of a tile's units, by this block's gate gradients: the sum's rest, then sent.
    const auto finish = [&](int t, float (&sums)[kRowTiles][4], int first) {
      const uint4* const w = stored(t);
#pragma unroll 2
      for (int j = first; j < j_steps; ++j) {
        multiply(sums, w[(j - first) * 32], column + j * 16, stride);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = t * 16 + lane / 4 + 8 * half;
        float* const row = to + k / units * one_block + k % units;
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
          for (int f = 0; f < 2; ++f) {
            const int b = n * kColumns + 2 * (lane % 4) + f;
            if (k < H && b < active) row[b * units] = sums[n][2 * half + f];
          }
        }
      }
    };
    if (active > 0) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int t = warp + n * warps;
        if (t >= tiles) continue;
        float sums[kRowTiles][4] = {};
#pragma unroll
        for (int j = 0; j < kHeld; ++j) {
          if (j < j_steps) multiply(sums, held[n][j], column + j * 16, stride);
        }
        finish(t, sums, kHeld);
      }
      for (int t = warp + kTiles * warps; t < tiles; t += warps) {
        float sums[kRowTiles][4] = {};
        finish(t, sums, 0);
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

template <class C, class T>
SEQKERN_DEVICE void mma_backward(const Both<Backward>& args, const MmaMemory& m) {
  if (m.splits == 1) {
    backward_in<C, T, false>(args, m);
  } else {
    backward_in<C, T, true>(args, m);
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
