// The grid-persistent tier: the hidden units are spread over the blocks of a cooperative launch.
// Each block keeps its units' rows of W_hh (all gates) in shared memory for a whole chunk, and the
// blocks of a direction exchange what crosses units through global memory: h forward, partial
// sums of grad_h backward.
//
// One flag per block counts the steps whose results it has published. It is stored with release
// order after a __syncthreads, and all threads that read others' results meet at a __syncthreads
// after the flags were loaded with acquire order. There is no barrier over the grid.
#include "cuda/grid.h"

#include "cuda/pointwise.cuh"

namespace seqkern::cuda {

namespace {

constexpr int kRows = kGridRows;
static_assert(kRows == 8, "the exchange below is written for it");

// sums[row] of all lanes of a warp, added up; a lane gets row lane % 8's.
template <class A>
SEQKERN_DEVICE A reduce_rows(A (&sums)[kRows], int lane) {
#pragma unroll
  for (int half = kRows / 2; half > 0; half /= 2) {
    const bool high = lane & half;
#pragma unroll
    for (int b = 0; b < half; ++b) {
      const A sent = high ? sums[b] : sums[b + half];
      sums[b] = (high ? sums[b + half] : sums[b]) + __shfl_xor_sync(~0u, sent, half);
    }
  }
  A sum = sums[0];
  sum += __shfl_xor_sync(~0u, sum, 8);
  return sum + __shfl_xor_sync(~0u, sum, 16);
}

// Bytes up to the next multiple of 16: what follows is aligned for any type.
SEQKERN_DEVICE int64_t aligned(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// What a block knows of its place.
template <class Args>
struct Part {
  int H, batch, first_unit, units;  // of this block
  uint32_t* flags;                  // of this direction's blocks
  int64_t base, steps;              // first row and number of steps of the chunk

  SEQKERN_DEVICE Part(const Args& a, const GridMemory& grid)
      : H(static_cast<int>(a.H)),
        batch(static_cast<int>(a.steps.batch)),
        first_unit(blockIdx.x * grid.units),
        units(H - first_unit < grid.units ? H - first_unit : grid.units),
        flags(grid.flags + blockIdx.y * gridDim.x),
        base(a.steps.offsets ? a.steps.offsets[a.steps.begin] : a.steps.begin * a.steps.batch),
        steps(a.steps.end - a.steps.begin) {}

  // Returns once every block of the direction has published `count` steps.
  SEQKERN_DEVICE void wait(uint32_t count) const {
    for (unsigned p = threadIdx.x; p < gridDim.x; p += blockDim.x) {
      spin_until([&] { return load_acquire(flags + p) >= count; });
    }
    __syncthreads();
  }
  SEQKERN_DEVICE void publish(uint32_t count) const {
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags + blockIdx.x, count);
  }
};

// Rows (unit, gate) of W_hh that belong to this block: weights[u*G + g][k].
template <int G, class T, class Args>
SEQKERN_DEVICE void load_weights(const Args& a, const Part<Args>& part, T* weights) {
  for (int j = threadIdx.x / 32; j < part.units * G; j += blockDim.x / 32) {
    const int64_t row = int64_t{j % G} * part.H + part.first_unit + j / G;
    for (int k = threadIdx.x % 32; k < part.H; k += 32) {
      weights[int64_t{j} * part.H + k] = as<T>(a.w_hh)[row * part.H + k];
    }
  }
}

// A warp takes one unit and kRows rows at a time; its lanes share the sum over k.
template <class C, class T>
SEQKERN_DEVICE void grid_forward(const Both<Forward>& args, const GridMemory& grid) {
  using A = Math<T>;
  constexpr int G = C::kGates;
  const Forward& a = args.direction[blockIdx.y];
  const Part<Forward> part(a, grid);
  const int H = part.H, warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // weights[u*G + g][k]; c and h of this block's units: [u][row]
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  T* const weights = reinterpret_cast<T*>(shared);
  A* const own_c = reinterpret_cast<A*>(shared + aligned(int64_t{grid.units} * G * H * sizeof(T)));
  A* const own_h = own_c + int64_t{grid.units} * part.batch;
  load_weights<G>(a, part, weights);
  for (int i = threadIdx.x; i < part.units * part.batch; i += blockDim.x) {
    const int64_t from = int64_t{i % part.batch} * H + part.first_unit + i / part.batch;
    own_h[i] = to_float(as<T>(a.h)[from]);
    if constexpr (C::kHasCellState) own_c[i] = as<A>(a.c)[from];
  }
  __syncthreads();

  for (int64_t i = 0; i < part.steps; ++i) {
    const Step s = step_at(a.steps, a.steps.reverse ? a.steps.end - 1 - i : a.steps.begin + i);
    const int active = static_cast<int>(s.rows);
    const int items = part.units * ((active + kRows - 1) / kRows);
    const auto read_x = [&](int item, A(&x)[G]) {
      const int r = item / part.units * kRows + lane % kRows;
      if (item >= items || lane >= kRows || r >= active) return;
      const int unit = part.first_unit + item % part.units;
      const A* from = as<A>(a.x) + (s.row - part.base + r) * (G * H) + unit;
#pragma unroll
      for (int g = 0; g < G; ++g) x[g] = from[g * H];
    };
    A x[G] = {};
    read_x(warp, x);  // on its way while the flags are waited for
    if (i > 0) part.wait(static_cast<uint32_t>(i));
    for (int item = warp; item < items; item += warps) {
      const int u = item % part.units, first = item / part.units * kRows;
      const T* rows[kRows];
#pragma unroll
      for (int b = 0; b < kRows; ++b) {
        // Rows past the end repeat the last: read, and never used.
        const int r = first + b < active ? first + b : active - 1;
        rows[b] = r < s.continued ? as<T>(a.output) + (s.before + r) * a.ldo
                                  : as<T>(a.h_0) + int64_t{r} * H;
      }
      A sums[G][kRows] = {};
      const T* w = weights + int64_t{u} * G * H;
      for (int k = lane; k < H; k += 32) {
        A weight[G];
#pragma unroll
        for (int g = 0; g < G; ++g) weight[g] = to_float(w[g * H + k]);
#pragma unroll
        for (int b = 0; b < kRows; ++b) {
          const A value = to_float(rows[b][k]);
#pragma unroll
          for (int g = 0; g < G; ++g) sums[g][b] += weight[g] * value;
        }
      }
      A q[G];
#pragma unroll
      for (int g = 0; g < G; ++g) q[g] = reduce_rows(sums[g], lane);
      const int r = first + lane;
      if (lane < kRows && r < active) {
        const int unit = part.first_unit + u;
        A& h = own_h[u * part.batch + r];
        A c{};
        if constexpr (C::kHasCellState) c = own_c[u * part.batch + r];
        add_bias<C>(as<A>(a.bias), H, unit, x, q);
        const T rounded =
            from_float<T>(forward_unit<C, T>(a, s.row, int64_t{r}, int64_t{unit}, x, q, h, c));
        as<T>(a.output)[(s.row + r) * a.ldo + unit] = rounded;
        h = to_float(rounded);
        if constexpr (C::kHasCellState) own_c[u * part.batch + r] = c;
      }
      read_x(item + warps, x);
    }
    part.publish(static_cast<uint32_t>(i + 1));
  }
  for (int i = threadIdx.x; i < part.units * part.batch; i += blockDim.x) {
    const int64_t to = int64_t{i % part.batch} * H + part.first_unit + i / part.batch;
    as<T>(a.h)[to] = from_float<T>(own_h[i]);
    if constexpr (C::kHasCellState) as<A>(a.c)[to] = own_c[i];
  }
}

// Four lanes take one (unit, row): they share the sum over the blocks' partial sums, and the first
// does the pointwise part. Then a thread takes one column of W_hh and kRows rows at a time.
//
// partials[buffer][direction][to block][from block][row][unit of the former], two buffers: a block
// that writes to one again has seen that all others published a step since they read it.
template <class C, class T>
SEQKERN_DEVICE void grid_backward(const Both<Backward>& args, const GridMemory& grid) {
  using A = Math<T>;
  constexpr int G = C::kGates, kLanes = 4;
  constexpr bool kCarries = C::kHasCellState || C::kCarriesGradH;
  const Backward& a = args.direction[blockIdx.y];
  const Part<Backward> part(a, grid);
  const int H = part.H, batch = part.batch, units = grid.units, blocks = gridDim.x;
  const int padded = (batch + kRows - 1) / kRows * kRows;
  const int lane = threadIdx.x % kLanes, quad = threadIdx.x / kLanes, quads = blockDim.x / kLanes;

  // weights[u*G + g][k]; this block's gate gradients [u*G + g][row]; its units' grad_h and
  // grad_state [u][row]
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  T* const weights = reinterpret_cast<T*>(shared);
  A* const d = reinterpret_cast<A*>(shared + aligned(int64_t{units} * G * H * sizeof(T)));
  A* const grad_h = d + int64_t{units} * G * padded;
  A* const grad_state = grad_h + int64_t{units} * batch;
  load_weights<G>(a, part, weights);
  for (int i = threadIdx.x; i < units * G * padded; i += blockDim.x) d[i] = 0;
  for (int i = threadIdx.x; i < part.units * batch; i += blockDim.x) {
    const int64_t from = int64_t{i % batch} * H + part.first_unit + i / batch;
    grad_h[i] = as<A>(a.grad_h)[from];
    if constexpr (kCarries) grad_state[i] = as<A>(a.grad_state)[from];
  }
  __syncthreads();

  const int64_t one_pair = int64_t{batch} * units, one_block = one_pair * blocks,
                one_direction = one_block * blocks, one_buffer = one_direction * args.count;
  A* const partials = as<A>(grid.partials) + blockIdx.y * one_direction;
  const auto time = [&](int64_t i) {
    return a.steps.reverse ? a.steps.begin + i : a.steps.end - 1 - i;
  };
  // The sum of what all blocks sent for a (unit, row) after step i of so many rows, in a fixed
  // order.
  const auto received = [&](int64_t i, int64_t rows, int u, int r) {
    const A* from = partials + i % 2 * one_buffer + blockIdx.x * one_block + r * units + u;
    A sum = 0;
    if (r < rows) {
      for (int p = lane; p < blocks; p += kLanes) sum += from[p * one_pair];
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
  };
  // All lanes of a warp take part in the exchange above, also those without a pair.
  const int pairs = part.units * batch, rounds = (pairs + quads - 1) / quads;

  int64_t before = 0;  // rows of the step that the pass took last
  for (int64_t i = 0; i < part.steps; ++i) {
    const Step s = step_at(a.steps, time(i));
    const int active = static_cast<int>(s.rows);
    const auto read = [&](int pair) {
      const int u = pair / batch, r = pair % batch;
      return lane == 0 && pair < pairs && r < active
                 ? read_backward<C, T>(a, s, s.row - part.base, 0, int64_t{r},
                                       int64_t{part.first_unit + u})
                 : BackwardInput<C, T>{};
    };
    auto in = read(quad);
    if (i > 0) part.wait(static_cast<uint32_t>(i));
    for (int round = 0; round < rounds; ++round) {
      const int pair = round * quads + quad;
      const bool exists = pair < pairs;
      const int u = exists ? pair / batch : 0, r = exists ? pair % batch : 0;
      const A sum = i > 0 ? received(i - 1, before, u, r) : A(0);
      if (lane == 0 && exists) {
        if (r < before) grad_h[pair] = sum;
        A gates[C::kGradGates] = {};
        if (r < active) {
          A state{};
          if constexpr (kCarries) state = grad_state[pair];
          backward_unit<C, T>(a, s.row, s.row - part.base, int64_t{r}, int64_t{part.first_unit + u},
                              in, grad_h[pair], state, gates);
          if constexpr (kCarries) grad_state[pair] = state;
        }
#pragma unroll
        for (int g = 0; g < G; ++g) {
          d[(u * G + g) * padded + r] = to_float(from_float<T>(gates[g]));
        }
      }
      in = read(pair + quads);
    }
    __syncthreads();
    A* const to = partials + i % 2 * one_buffer + blockIdx.x * one_pair;
    const int tiles = (active + kRows - 1) / kRows;
    for (int item = threadIdx.x; item < H * tiles; item += blockDim.x) {
      const int k = item % H, first = item / H * kRows;
      A sums[kRows] = {};
      for (int j = 0; j < part.units * G; ++j) {
        const A weight = to_float(weights[int64_t{j} * H + k]);
#pragma unroll
        for (int b = 0; b < kRows; ++b) sums[b] += weight * d[j * padded + first + b];
      }
#pragma unroll
      for (int b = 0; b < kRows; ++b) {
        if (first + b < active) {
          to[k / units * one_block + (first + b) * units + k % units] = sums[b];
        }
      }
    }
    part.publish(static_cast<uint32_t>(i + 1));
    before = active;
  }
  part.wait(static_cast<uint32_t>(part.steps));
  for (int round = 0; round < rounds; ++round) {
    const int pair = round * quads + quad;
    const bool exists = pair < pairs;
    const int u = exists ? pair / batch : 0, r = exists ? pair % batch : 0;
    const A sum = received(part.steps - 1, before, u, r);
    if (lane == 0 && exists) {
      const int64_t at = int64_t{r} * H + part.first_unit + u;
      as<A>(a.grad_h)[at] = r < before ? sum : grad_h[pair];
      if constexpr (kCarries) as<A>(a.grad_state)[at] = grad_state[pair];
    }
  }
}

template <class Args>
void launch_grid(void (*kernel)(Both<Args>, GridMemory), const GridShape& shape, int64_t shared,
                 const Both<Args>& args, GridMemory memory, Stream stream) {
  memory.units = shape.units;
  allow_shared_memory(kernel, shared);
  launch_cooperative(kernel, dim3(shape.blocks, args.count), dim3(shape.threads), shared, stream,
                     args, memory);
}

}  // namespace

// ---- Kernels: seqkern_CELL_grid_PASS_TYPE(arguments, memory) ----

#define SEQKERN_CELL_KERNELS(type, T, cell, C)                                     \
  extern "C" __global__ void __launch_bounds__(grid_threads(sizeof(T)), 1)         \
      seqkern_##cell##_grid_forward_##type(SEQKERN_PARAMETER Both<Forward> args,   \
                                           GridMemory grid) {                      \
    grid_forward<C, T>(args, grid);                                                \
  }                                                                                \
  extern "C" __global__ void __launch_bounds__(grid_threads(sizeof(T)), 1)         \
      seqkern_##cell##_grid_backward_##type(SEQKERN_PARAMETER Both<Backward> args, \
                                            GridMemory grid) {                     \
    grid_backward<C, T>(args, grid);                                               \
  }
#define SEQKERN_ALL_TYPES(cell, C, _) SEQKERN_FOR_TYPES(SEQKERN_CELL_KERNELS, cell, C)
SEQKERN_FOR_CELLS(SEQKERN_ALL_TYPES, )

void launch_grid_forward(Cell cell, Type type, const GridShape& shape, const Both<Forward>& args,
                         const GridMemory& memory, Stream stream) {
  static void (*const kKernels[kNumCells][kNumTypes])(Both<Forward>, GridMemory) =
      SEQKERN_TABLE(grid_forward);
  launch_grid(kKernels[int(cell)][int(type)], shape, shape.shared_forward, args, memory, stream);
}

void launch_grid_backward(Cell cell, Type type, const GridShape& shape, const Both<Backward>& args,
                          const GridMemory& memory, Stream stream) {
  static void (*const kKernels[kNumCells][kNumTypes])(Both<Backward>, GridMemory) =
      SEQKERN_TABLE(grid_backward);
  launch_grid(kKernels[int(cell)][int(type)], shape, shape.shared_backward, args, memory, stream);
}

}  // namespace seqkern::cuda
