// The block-persistent tier: a block takes kRows rows of the batch through all steps of a chunk,
// with W_hh in shared memory and h, c and their gradients in registers. Blocks never wait for each
// other; a step is one __syncthreads.
//
// Threads come in quads: quad u owns hidden unit u, lane `part` of it a quarter of the sum over k.
// The quad's sums are exchanged so that lane `part` ends with row `part`'s products, and does the
// pointwise part for that row.
#include "cuda/block.h"
#include "cuda/pointwise.cuh"

namespace seqkern::cuda {

namespace {

constexpr int kRows = kBlockRows, kParts = kBlockParts;
static_assert(kRows == 4 && kParts == 4, "the exchange below is written for these");

// N values that are loaded together, with one instruction where they are 16 bytes.
template <class A, int N>
struct alignas(N % 4 == 0 && sizeof(A) * N >= 16 ? 16 : sizeof(A)) Pack {
  A v[N];
};

// sums[row] of the four lanes of a quad, added up; lane `part` gets row `part`'s.
template <class A>
SEQKERN_DEVICE A reduce_rows(const A (&sums)[kRows], int part) {
  const bool high = part & 2, odd = part & 1;
  const A a = (high ? sums[2] : sums[0]) + __shfl_xor_sync(~0u, high ? sums[0] : sums[2], 2);
  const A b = (high ? sums[3] : sums[1]) + __shfl_xor_sync(~0u, high ? sums[1] : sums[3], 2);
  return (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 1);
}

SEQKERN_DEVICE int64_t first_row(const Steps& s) {
  return s.offsets ? s.offsets[s.begin] : s.begin * s.batch;
}

template <class C, class T>
SEQKERN_DEVICE void block_forward(const Both<Forward>& args) {
  using A = Math<T>;
  constexpr int G = C::kGates;
  using Weights = Pack<A, G>;
  using Row = Pack<A, kRows>;
  const Forward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H), groups = (H + kParts - 1) / kParts;
  const int tid = threadIdx.x, part = tid % kParts;
  const bool owner = tid < H * kParts;
  const int unit = owner ? tid / kParts : 0;
  const int64_t tile = int64_t{blockIdx.x} * kRows, r = tile + part;

  // weights[i][unit][part][g] = w_hh[g*H + unit, i*kParts + part], h[buffer][k][row]
  SEQKERN_DYNAMIC_SHARED(A, shared);
  A* const weights = shared;
  A* const h = weights + int64_t{groups} * kParts * H * G;
  const int h_size = groups * kParts * kRows;
  for (int row = tid / 32; row < G * H; row += blockDim.x / 32) {
    const int g = row / H, u = row % H;
    for (int k = tid % 32; k < groups * kParts; k += 32) {
      weights[((k / kParts * H + u) * kParts + k % kParts) * G + g] =
          k < H ? A(to_float(as<T>(a.w_hh)[int64_t{row} * H + k])) : A(0);
    }
  }
  for (int i = tid; i < 2 * h_size; i += blockDim.x) h[i] = 0;

  const bool exists = owner && r < a.steps.batch;
  A bias[G + 1] = {}, own_h{}, c{};
  if (exists) {
#pragma unroll
    for (int g = 0; g <= G; ++g) bias[g] = as<A>(a.bias)[g * H + unit];
    own_h = to_float(as<T>(a.h)[r * H + unit]);
    if constexpr (C::kHasCellState) c = as<A>(a.c)[r * H + unit];
  }
  __syncthreads();
  if (owner) h[unit * kRows + part] = own_h;
  __syncthreads();

  const int64_t base = first_row(a.steps), steps = a.steps.end - a.steps.begin;
  const auto time = [&](int64_t i) {
    return a.steps.reverse ? a.steps.end - 1 - i : a.steps.begin + i;
  };
  const auto read_x = [&](const Step& s, A(&x)[G]) {
    const A* from = as<A>(a.x) + (s.row + r - base) * (G * H) + unit;
    if (exists && r < s.rows) {
#pragma unroll
      for (int g = 0; g < G; ++g) x[g] = from[g * H];
    }
  };
  Step s = step_at(a.steps, time(0));
  A x[G] = {};
  read_x(s, x);
  int buffer = 0;
  for (int64_t i = 0; i < steps; ++i) {
    Step next{};
    A next_x[G] = {};
    if (i + 1 < steps) {
      next = step_at(a.steps, time(i + 1));
      read_x(next, next_x);
    }
    // Uniform over the block: none of its rows has begun yet, or all have ended.
    if (tile < s.rows) {
      A sums[G][kRows] = {};
      const Weights* w = reinterpret_cast<const Weights*>(weights) + (unit * kParts + part);
      const Row* rows = reinterpret_cast<const Row*>(h + buffer * h_size) + part;
#pragma unroll 4
      for (int j = 0; j < groups; ++j) {
        const Weights weight = w[int64_t{j} * H * kParts];
        const Row value = rows[j * kParts];
#pragma unroll
        for (int g = 0; g < G; ++g) {
#pragma unroll
          for (int b = 0; b < kRows; ++b) sums[g][b] += weight.v[g] * value.v[b];
        }
      }
      A q[G];
#pragma unroll
      for (int g = 0; g < G; ++g) q[g] = reduce_rows(sums[g], part);
      if (exists && r < s.rows) {
#pragma unroll
        for (int g = 0; g < G; ++g) x[g] += bias[g];
        if constexpr (C::kRecurrentBias) q[G - 1] += bias[G];
        const T rounded =
            from_float<T>(forward_unit<C, T>(a, s.row, r, int64_t{unit}, x, q, own_h, c));
        as<T>(a.output)[(s.row + r) * a.ldo + unit] = rounded;
        own_h = to_float(rounded);
      }
      buffer ^= 1;
      if (owner) h[buffer * h_size + unit * kRows + part] = own_h;
      __syncthreads();
    }
    s = next;
#pragma unroll
    for (int g = 0; g < G; ++g) x[g] = next_x[g];
  }
  if (exists) {
    as<T>(a.h)[r * H + unit] = from_float<T>(own_h);
    if constexpr (C::kHasCellState) as<A>(a.c)[r * H + unit] = c;
  }
}

// W_hh's rows, rotated as the gate gradients' recurrent columns, are summed over: `part` takes four
// in turn.
template <class C, class T>
SEQKERN_DEVICE void block_backward(const Both<Backward>& args) {
  using A = Math<T>;
  constexpr int G = C::kGates, kRun = kBlockRun;
  constexpr bool kCarries = C::kHasCellState || C::kCarriesGradH;
  using Weights = Pack<A, kRun>;
  using Row = Pack<A, kRows>;
  const Backward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H), width = G * H;
  const int groups = (width + kParts * kRun - 1) / (kParts * kRun);
  const int tid = threadIdx.x, part = tid % kParts;
  const bool owner = tid < H * kParts;
  const int unit = owner ? tid / kParts : 0;
  const int64_t tile = int64_t{blockIdx.x} * kRows, r = tile + part;

  // weights[i][unit][part][q] = w_hh[(i*kParts + part)*kRun + q, unit], d[buffer][j][row]
  SEQKERN_DYNAMIC_SHARED(A, shared);
  A* const weights = shared;
  const int padded = groups * kParts * kRun, d_size = padded * kRows;
  A* const d = weights + int64_t{padded} * H;
  for (int j = tid / 32; j < padded; j += blockDim.x / 32) {
    for (int u = tid % 32; u < H; u += 32) {
      weights[((j / (kParts * kRun) * H + u) * kParts + j / kRun % kParts) * kRun + j % kRun] =
          j < width ? A(to_float(as<T>(a.w_hh)[int64_t{j} * H + u])) : A(0);
    }
  }
  for (int i = tid; i < 2 * d_size; i += blockDim.x) d[i] = 0;
  __syncthreads();

  const bool exists = owner && r < a.steps.batch;
  A grad_h{}, grad_state{};
  if (exists) {
    grad_h = as<A>(a.grad_h)[r * H + unit];
    if constexpr (kCarries) grad_state = as<A>(a.grad_state)[r * H + unit];
  }

  const int64_t base = first_row(a.steps), steps = a.steps.end - a.steps.begin;
  const auto time = [&](int64_t i) {
    return a.steps.reverse ? a.steps.begin + i : a.steps.end - 1 - i;
  };
  const auto read = [&](const Step& s) {
    return exists && r < s.rows ? read_backward<C, T>(a, s, s.row - base, 0, r, int64_t{unit})
                                : BackwardInput<C, T>{};
  };
  Step s = step_at(a.steps, time(0));
  auto in = read(s);
  int buffer = 0;
  for (int64_t i = 0; i < steps; ++i) {
    Step next{};
    BackwardInput<C, T> next_in{};
    if (i + 1 < steps) {
      next = step_at(a.steps, time(i + 1));
      next_in = read(next);
    }
    if (tile < s.rows) {
      const bool active = exists && r < s.rows;
      A gates[C::kGradGates] = {};
      if (active) {
        backward_unit<C, T>(a, s.row, s.row - base, r, int64_t{unit}, in, grad_h, grad_state,
                            gates);
      }
      if (owner) {
#pragma unroll
        for (int g = 0; g < G; ++g) {
          d[buffer * d_size + (g * H + unit) * kRows + part] = to_float(from_float<T>(gates[g]));
        }
      }
      __syncthreads();
      A sums[kRows] = {};
      const Weights* w = reinterpret_cast<const Weights*>(weights) + (unit * kParts + part);
      const Row* rows = reinterpret_cast<const Row*>(d + buffer * d_size) + part * kRun;
#pragma unroll 4
      for (int j = 0; j < groups; ++j) {
        const Weights weight = w[int64_t{j} * H * kParts];
#pragma unroll
        for (int q = 0; q < kRun; ++q) {
          const Row value = rows[j * kParts * kRun + q];
#pragma unroll
          for (int b = 0; b < kRows; ++b) sums[b] += weight.v[q] * value.v[b];
        }
      }
      const A sum = reduce_rows(sums, part);
      if (active) grad_h = sum;
      buffer ^= 1;
    }
    s = next;
    in = next_in;
  }
  if (exists) {
    as<A>(a.grad_h)[r * H + unit] = grad_h;
    if constexpr (kCarries) as<A>(a.grad_state)[r * H + unit] = grad_state;
  }
}

template <class Args>
void launch_block(void (*kernel)(Both<Args>), const BlockShape& shape, int64_t shared,
                  const Both<Args>& args, Stream stream) {
  const unsigned tiles = static_cast<unsigned>((args.direction[0].steps.batch + kRows - 1) / kRows);
  allow_shared_memory(kernel, shared);
  launch(kernel, dim3(tiles, args.count), dim3(shape.threads), shared, stream, args);
}

}  // namespace

// ---- Kernels: seqkern_CELL_block_PASS_TYPE(arguments) ----

#define SEQKERN_CELL_KERNELS(type, T, cell, C)                                        \
  extern "C" __global__ void __launch_bounds__(kBlockThreads, 1)                      \
      seqkern_##cell##_block_forward_##type(SEQKERN_PARAMETER Both<Forward> args) {   \
    block_forward<C, T>(args);                                                        \
  }                                                                                   \
  extern "C" __global__ void __launch_bounds__(kBlockThreads, 1)                      \
      seqkern_##cell##_block_backward_##type(SEQKERN_PARAMETER Both<Backward> args) { \
    block_backward<C, T>(args);                                                       \
  }
#define SEQKERN_ALL_TYPES(cell, C, _) SEQKERN_FOR_TYPES(SEQKERN_CELL_KERNELS, cell, C)
SEQKERN_FOR_CELLS(SEQKERN_ALL_TYPES, )

void launch_block_forward(Cell cell, Type type, const Both<Forward>& args, Stream stream) {
  static void (*const kKernels[kNumCells][kNumTypes])(Both<Forward>) = SEQKERN_TABLE(block_forward);
  const BlockShape shape = block_shape(cell, type, args.direction[0].H);
  launch_block(kKernels[int(cell)][int(type)], shape, shape.shared_forward, args, stream);
}

void launch_block_backward(Cell cell, Type type, const Both<Backward>& args, Stream stream) {
  static void (*const kKernels[kNumCells][kNumTypes])(Both<Backward>) =
      SEQKERN_TABLE(block_backward);
  const BlockShape shape = block_shape(cell, type, args.direction[0].H);
  launch_block(kKernels[int(cell)][int(type)], shape, shape.shared_backward, args, stream);
}

}  // namespace seqkern::cuda
