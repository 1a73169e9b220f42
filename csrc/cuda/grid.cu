// The grid-persistent tier: the hidden units are spread over the blocks of a cooperative launch.
// Each block keeps its units' rows of W_hh (all gates) in shared memory for a whole chunk, and the
// blocks of a direction exchange what crosses units through global memory: h forward, partial
// sums of grad_h backward. There is no barrier over the grid: see exchange.cuh.
//
// A trip to the second-level cache takes as long as hundreds of multiplications. So all threads of
// a block load together what a step needs from there, wide and many loads at a time, and what
// computes reads shared memory, 16 bytes at a time.
#include "cuda/grid.h"

#include <utility>

#include "cuda/exchange.cuh"
#include "cuda/pointwise.cuh"

namespace seqkern::cuda {

namespace {

constexpr int kRows = kGridRows;

SEQKERN_DEVICE int up_to(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
SEQKERN_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// Neighbouring values that are loaded and stored at once, or 16 bytes of them at a time.
template <class T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Run {
  T value[kCount];
};
template <int kCount, class T>
SEQKERN_DEVICE Run<T, kCount> load_run(const T* from) {
  return *reinterpret_cast<const Run<T, kCount>*>(from);
}
template <class T, int kCount>
SEQKERN_DEVICE void store_run(T* to, const Run<T, kCount>& run) {
  *reinterpret_cast<Run<T, kCount>*>(to) = run;
}

// What a block knows of its place.
template <class Args>
struct Part {
  int H, width, batch, first_unit, units;  // units of this block; width: H, padded
  int64_t base, steps;                     // first row and number of steps of the chunk
  Published published;                     // among this direction's blocks

  SEQKERN_DEVICE Part(const Args& a, const GridMemory& grid)
      : H(static_cast<int>(a.H)),
        width(up_to(H, kGridColumns)),
        batch(static_cast<int>(a.steps.batch)),
        first_unit(blockIdx.x * grid.units),
        units(smaller(H - first_unit, grid.units)),
        base(a.steps.offsets ? a.steps.offsets[a.steps.begin] : a.steps.begin * a.steps.batch),
        steps(a.steps.end - a.steps.begin),
        published(grid.counters + blockIdx.y, gridDim.x) {}
};

// Rows (unit, gate) of W_hh that belong to this block: weights[u*G + g][k], zeros past the last k.
template <int G, class T, class Args>
SEQKERN_DEVICE void load_weights(const Args& a, const Part<Args>& part, T* weights) {
  for (int j = threadIdx.x / 32; j < part.units * G; j += blockDim.x / 32) {
    const int64_t row = int64_t{j % G} * part.H + part.first_unit + j / G;
    for (int k = threadIdx.x % 32; k < part.width; k += 32) {
      weights[j * part.width + k] =
          k < part.H ? as<T>(a.w_hh)[row * part.H + k] : from_float<T>(0.f);
    }
  }
}

// ---- forward ----

// Columns from `begin` on of all rows of h_{t-1}, `count` of them, to to[row][piece].
template <class T>
SEQKERN_DEVICE void copy_h(const Forward& a, const Step& s, int begin, int count, int piece,
                           bool vectors, T* to) {
  constexpr int kVector = 16 / sizeof(T);
  const int lane = threadIdx.x % 32, left = static_cast<int>(a.H) - begin;
  for (int r = threadIdx.x / 32; r < s.rows; r += blockDim.x / 32) {
    const T* from = begin + (r < s.continued ? as<T>(a.output) + (s.before + r) * a.ldo
                                             : as<T>(a.h_0) + r * a.H);
    T* const row = to + r * piece;
    if (vectors) {
      for (int k = lane * kVector; k < count; k += 32 * kVector) {
        cp_async<16>(row + k, k < left ? from + k : from, k < left ? 16 : 0);
      }
    } else {
#pragma unroll 8
      for (int k = lane; k < count; k += 32) row[k] = k < left ? from[k] : from_float<T>(0.f);
    }
  }
  cp_async_commit();
  cp_async_wait<0>();
}

// Adds up values[0 .. kCount) over the lanes of a warp. They are shared out: a lane gets the sums
// first, first + 1, ... of them, `count` or none, in values[0], values[1], ...
template <int kCount, int kHalf = 16, int kAll, class A>
SEQKERN_DEVICE void reduce(A (&values)[kAll], int& first, int& count) {
  constexpr int kKept = (kCount + 1) / 2;
  const bool high = threadIdx.x & kHalf;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const A upper = i + kKept < kCount ? values[(i + kKept) % kCount] : A(0);
    const A sent = high ? values[i] : upper;
    values[i] = (high ? upper : values[i]) + __shfl_xor_sync(~0u, sent, kHalf);
  }
  first += high ? kKept : 0;
  count = high ? count - kKept : smaller(count, kKept);
  if constexpr (kHalf > 1) reduce<kKept, kHalf / 2>(values, first, count);
}

// A tile of sums, by a warp: kTerms rows of the weights times kTaken rows of h, columns from
// `begin` to `end`. Of both there may be fewer; then the last is taken again, and its sums are
// never used. They go to slot[row of the weights][row of h], or are added to what is there.
template <int kTerms, int kTaken, class T, class A>
SEQKERN_DEVICE void sum_tile(const T* weights, int terms, int width, const T* h, int rows,
                             int piece, int begin, int end, bool add, int slot_rows, A* slot) {
  constexpr int kRun = grid_run(sizeof(T));
  int from_weights[kTerms], from_h[kTaken];
#pragma unroll
  for (int j = 0; j < kTerms; ++j) from_weights[j] = smaller(j, terms - 1) * width;
#pragma unroll
  for (int b = 0; b < kTaken; ++b) from_h[b] = smaller(b, rows - 1) * piece;
  A sums[kTerms * kTaken] = {};
  for (int k = begin + threadIdx.x % 32 * kRun; k < end; k += 32 * kRun) {
    Run<T, kRun> w[kTerms];
#pragma unroll
    for (int j = 0; j < kTerms; ++j) w[j] = load_run<kRun>(weights + from_weights[j] + k);
#pragma unroll
    for (int b = 0; b < kTaken; ++b) {
      const auto values = load_run<kRun>(h + from_h[b] + k);
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const A value = to_float(values.value[i]);
#pragma unroll
        for (int j = 0; j < kTerms; ++j) sums[j * kTaken + b] += to_float(w[j].value[i]) * value;
      }
    }
  }
  int first = 0, count = kTerms * kTaken;
  reduce<kTerms * kTaken>(sums, first, count);
#pragma unroll
  for (int i = 0; i < (kTerms * kTaken + 31) / 32; ++i) {
    const int j = (first + i) / kTaken, b = (first + i) % kTaken;
    A* const to = slot + j * slot_rows + b;
    if (i < count && j < terms && b < slot_rows) *to = add ? *to + sums[i] : sums[i];
  }
}

// The sums of a step are tiles of a few units and rows, and each tile is cut along k into chunks,
// as many columns as a warp takes at a time. All chunks of all tiles are shared out evenly: a warp
// has a run of them. Its sum over those of one tile goes to slot tile + warp, which is nobody
// else's, and a (unit, row)'s thread adds up the slots of its tile.
template <class C, class T>
SEQKERN_DEVICE void grid_forward(const Both<Forward>& args, const GridMemory& grid) {
  using A = Math<T>;
  constexpr int G = C::kGates, kUnits = grid_units(G, sizeof(T)), kChunk = 32 * grid_run(sizeof(T));
  const Forward& a = args.direction[blockIdx.y];
  const Part<Forward> part(a, grid);
  const int H = part.H, width = part.width, units = part.units, batch = part.batch;
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, piece = grid.piece;
  const int unit_tiles = (units + kUnits - 1) / kUnits, chunks = (piece + kChunk - 1) / kChunk;
  const int slot_rows = smaller(batch, kRows);
  const int slot_size = smaller(grid.units, kUnits) * G * slot_rows;
  const int slots = warps + unit_tiles * ((batch + kRows - 1) / kRows);

  // weights[u*G + g][k]; a piece of h [row][k]; slots [u*G + g of its tile][row of its tile];
  // biases [g][u]; c and h of this block's units [row][u], each its thread's own
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  T* const weights = reinterpret_cast<T*>(shared);
  T* const h = weights + grid.units * G * width;
  A* const sums = reinterpret_cast<A*>(h + batch * piece);
  A* const bias = sums + slots * slot_size;
  A* const own_c = bias + (G + 1) * units;
  A* const own_h = own_c + units * batch;
  load_weights<G>(a, part, weights);
  for (int i = threadIdx.x; i < (G + 1) * units; i += blockDim.x) {
    bias[i] = as<A>(a.bias)[i / units * H + part.first_unit + i % units];
  }
  for (int i = threadIdx.x; i < units * batch; i += blockDim.x) {
    const int64_t from = int64_t{i / units} * H + part.first_unit + i % units;
    own_h[i] = to_float(as<T>(a.h)[from]);
    if constexpr (C::kHasCellState) own_c[i] = as<A>(a.c)[from];
  }
  __syncthreads();

  constexpr int kVector = 16 / sizeof(T);
  const bool vectors =
      H % kVector == 0 && a.ldo % kVector == 0 && on_16_bytes(a.output) && on_16_bytes(a.h_0);
  for (int64_t i = 0; i < part.steps; ++i) {
    const Step s = step_at(a.steps, a.steps.reverse ? a.steps.end - 1 - i : a.steps.begin + i);
    const int active = static_cast<int>(s.rows), pairs = active * units;
    const int work = unit_tiles * ((active + kRows - 1) / kRows) * chunks;
    const int share = (work + warps - 1) / warps;
    // What a (unit, row) needs that is known before the others' h is.
    struct Pair {
      int u, r;
      const A* from;  // its tile's first slot
      int slots;
      A x[G];
    };
    const auto prepare = [&](int pair) {
      Pair to{pair % units, pair / units, sums, 0, {}};
      if (pair >= pairs) return to;
      const int tile = to.r / kRows * unit_tiles + to.u / kUnits;
      const int first = tile * chunks / share, last = ((tile + 1) * chunks - 1) / share;
      to.from += (tile + first) * slot_size + to.u % kUnits * G * slot_rows + to.r % kRows;
      to.slots = last - first + 1;
      const A* x = as<A>(a.x) + (s.row - part.base + to.r) * (G * H) + part.first_unit + to.u;
#pragma unroll
      for (int g = 0; g < G; ++g) to.x[g] = x[g * H];
      return to;
    };
    Pair own = prepare(threadIdx.x);  // on its way while the others are waited for
    if (i > 0) part.published.wait(i);
    for (int begin = 0; begin < width; begin += piece) {
      const int count = smaller(piece, width - begin);
      if (begin > 0) __syncthreads();
      copy_h(a, s, begin, count, piece, vectors, h);
      __syncthreads();
      const int last = smaller((warp + 1) * share, work);
      for (int n = warp * share; n < last;) {
        const int tile = n / chunks, chunk = n % chunks, end = smaller(chunk + last - n, chunks);
        const int u = tile % unit_tiles * kUnits, r = tile / unit_tiles * kRows;
        const auto sum = [&]<int kTakenUnits, int kTakenRows>(
                             std::integer_sequence<int, kTakenUnits, kTakenRows>) {
          sum_tile<kTakenUnits * G, kTakenRows>(
              weights + u * G * width + begin, (units - u) * G, width, h + r * piece, active - r,
              piece, chunk * kChunk, smaller(end * kChunk, count), begin > 0, slot_rows,
              sums + (tile + warp) * slot_size);
        };
        if (kUnits == 1 || units - u == 1) {
          active - r <= 2 ? sum(std::integer_sequence<int, 1, 2>())
                          : sum(std::integer_sequence<int, 1, kRows>());
        } else {
          active - r <= 2 ? sum(std::integer_sequence<int, kUnits, 2>())
                          : sum(std::integer_sequence<int, kUnits, kRows>());
        }
        n += end - chunk;
      }
    }
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
      A q[G] = {}, c{};
      for (int n = 0; n < own.slots; ++n) {
#pragma unroll
        for (int g = 0; g < G; ++g) q[g] += own.from[n * slot_size + g * slot_rows];
      }
      const int unit = part.first_unit + own.u;
      const int64_t row = s.row + own.r;
      if constexpr (C::kHasCellState) c = own_c[pair];
      add_bias<C>(bias, units, own.u, own.x, q);
      const T rounded = from_float<T>(
          forward_unit<C, T>(a, row, int64_t{0}, int64_t{unit}, own.x, q, own_h[pair], c));
      as<T>(a.output)[row * a.ldo + unit] = rounded;
      own_h[pair] = to_float(rounded);
      if constexpr (C::kHasCellState) own_c[pair] = c;
      own = prepare(pair + blockDim.x);
    }
    part.published.publish();
  }
  for (int i = threadIdx.x; i < units * batch; i += blockDim.x) {
    const int64_t to = int64_t{i / units} * H + part.first_unit + i % units;
    as<T>(a.h)[to] = from_float<T>(own_h[i]);
    if constexpr (C::kHasCellState) store_c<T>(a, to, own_c[i]);
  }
}

// ---- backward ----

// What a block's gate gradients add to the grad_h of all units, to[k][row]: d[j][row] times
// weights[j][k], `terms` of j. A thread takes four k and kQuads times four rows at a time; threads
// beside each other have neighbouring rows, so that they store whole runs.
template <int kQuads, class T, class A>
SEQKERN_DEVICE void multiply(const T* weights, int width, const A* d, int padded, int terms,
                             int active, A* to) {
  const int sets = (active + 4 * kQuads - 1) / (4 * kQuads);
  for (int item = threadIdx.x; item < width / 4 * sets; item += blockDim.x) {
    const int k = item / sets * 4, row = item % sets * 4;
    Run<A, 4> sums[4][kQuads] = {};
#pragma unroll 2
    for (int j = 0; j < terms; ++j) {
      const auto w = load_run<4>(weights + j * width + k);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const auto values = load_run<4>(d + j * padded + row + q * 4 * sets);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int b = 0; b < 4; ++b) {
            sums[i][q].value[b] += to_float(w.value[i]) * values.value[b];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        store_run(to + int64_t{k + i} * padded + row + q * 4 * sets, sums[i][q]);
      }
    }
  }
}

// partials[buffer][direction][from block][k][row], two buffers: a block that writes to one again
// has seen that all others published a step since they read it.
template <class C, class T>
SEQKERN_DEVICE void grid_backward(const Both<Backward>& args, const GridMemory& grid) {
  using A = Math<T>;
  constexpr int G = C::kGates;
  constexpr bool kCarries = C::kHasCellState || C::kCarriesGradH;
  const Backward& a = args.direction[blockIdx.y];
  const Part<Backward> part(a, grid);
  const int H = part.H, width = part.width, units = part.units, batch = part.batch;
  const int blocks = gridDim.x, sources = grid.sources, padded = up_to(batch, kRows);

  // weights[u*G + g][k]; this block's gate gradients [u*G + g][row]; what was received
  // [source][u][row]; grad_h and grad_state of this block's units [row][u], each its thread's own
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  T* const weights = reinterpret_cast<T*>(shared);
  A* const d = reinterpret_cast<A*>(weights + grid.units * G * width);
  A* const received = d + grid.units * G * padded;
  A* const grad_h = received + sources * units * padded;
  A* const grad_state = grad_h + units * batch;
  load_weights<G>(a, part, weights);
  for (int i = threadIdx.x; i < units * batch; i += blockDim.x) {
    const int64_t from = int64_t{i / units} * H + part.first_unit + i % units;
    grad_h[i] = as<A>(a.grad_h)[from];
    if constexpr (kCarries) grad_state[i] = as<A>(a.grad_state)[from];
  }
  __syncthreads();

  const int64_t one_block = int64_t{width} * padded, one_direction = one_block * blocks,
                one_buffer = one_direction * args.count;
  A* const partials = as<A>(grid.partials) + blockIdx.y * one_direction;
  // Once all have published step i, of so many rows: what they sent to this block. A thread adds up
  // the blocks source, source + sources, ... for four rows of a unit.
  const auto receive = [&](int64_t i, int rows) {
    part.published.wait(i + 1);
    const A* const from = partials + i % 2 * one_buffer + int64_t{part.first_unit} * padded;
    const int quads = (rows + 3) / 4, runs = units * quads;
    for (int n = threadIdx.x; n < runs * sources; n += blockDim.x) {
      const int source = n / runs, run = n % runs, at = run / quads * padded + run % quads * 4;
      Run<A, 4> sum = {};
      for (int p = source; p < blocks; p += kGridInFlight * sources) {
        Run<A, 4> sent[kGridInFlight];
#pragma unroll
        for (int f = 0; f < kGridInFlight; ++f) {
          const int block = p + f * sources;
          sent[f] = block < blocks ? load_run<4>(from + block * one_block + at) : Run<A, 4>{};
        }
#pragma unroll
        for (int f = 0; f < kGridInFlight; ++f) {
#pragma unroll
          for (int b = 0; b < 4; ++b) sum.value[b] += sent[f].value[b];
        }
      }
      store_run(received + source * units * padded + at, sum);
    }
    __syncthreads();
  };
  // Takes over what was received for a (unit, row).
  const auto take = [&](int pair) {
    const A* from = received + pair % units * padded + pair / units;
    A sum = 0;
#pragma unroll 4
    for (int source = 0; source < sources; ++source) sum += from[source * units * padded];
    grad_h[pair] = sum;
  };

  int before = 0;  // rows of the step that the pass took last
  for (int64_t i = 0; i < part.steps; ++i) {
    const Step s = step_at(a.steps, a.steps.reverse ? a.steps.begin + i : a.steps.end - 1 - i);
    const int active = static_cast<int>(s.rows);
    const auto read = [&](int pair) {
      return pair < active * units
                 ? read_backward<C, T>(a, s, s.row - part.base, 0, int64_t{pair / units},
                                       int64_t{part.first_unit + pair % units})
                 : BackwardInput<C, T>{};
    };
    auto in = read(threadIdx.x);  // on its way while the others are waited for
    if (i > 0) receive(i - 1, before);
    for (int pair = threadIdx.x; pair < batch * units; pair += blockDim.x) {
      const int u = pair % units, r = pair / units;
      if (r < before) take(pair);
      if (r < active) {
        A gates[C::kGradGates] = {}, state{};
        if constexpr (kCarries) state = grad_state[pair];
        backward_unit<C, T>(a, s.row, s.row - part.base, int64_t{r}, int64_t{part.first_unit + u},
                            in, grad_h[pair], state, gates);
        if constexpr (kCarries) grad_state[pair] = state;
#pragma unroll
        for (int g = 0; g < G; ++g) {
          d[(u * G + g) * padded + r] = to_float(from_float<T>(gates[g]));
        }
      }
      in = read(pair + blockDim.x);
    }
    __syncthreads();
    A* const to = partials + i % 2 * one_buffer + blockIdx.x * one_block;
    if (active <= 4) {
      multiply<1>(weights, width, d, padded, units * G, active, to);
    } else {
      multiply<2>(weights, width, d, padded, units * G, active, to);
    }
    part.published.publish();
    before = active;
  }
  receive(part.steps - 1, before);
  for (int pair = threadIdx.x; pair < batch * units; pair += blockDim.x) {
    if (pair < before * units) take(pair);
    const int64_t at = int64_t{pair / units} * H + part.first_unit + pair % units;
    as<A>(a.grad_h)[at] = grad_h[pair];
    if constexpr (kCarries) as<A>(a.grad_state)[at] = grad_state[pair];
  }
}

template <class Args>
void launch_grid(void (*kernel)(Both<Args>, GridMemory), const GridShape& shape,
                 const Both<Args>& args, GridMemory memory, Stream stream) {
  memory.units = shape.units;
  memory.piece = shape.piece;
  memory.sources = shape.sources;
  allow_shared_memory(kernel, shape.shared);
  launch_cooperative(kernel, dim3(shape.blocks, args.count), dim3(shape.threads), shape.shared,
                     stream, args, memory);
}

}  // namespace

// ---- Kernels: seqkern_CELL_grid_PASS_TYPE(arguments, memory) ----

#define SEQKERN_CELL_KERNELS(type, T, cell, C)                                     \
  extern "C" __global__ void __launch_bounds__(grid_threads(sizeof(T), false), 1)  \
      seqkern_##cell##_grid_forward_##type(SEQKERN_PARAMETER Both<Forward> args,   \
                                           GridMemory grid) {                      \
    grid_forward<C, T>(args, grid);                                                \
  }                                                                                \
  extern "C" __global__ void __launch_bounds__(grid_threads(sizeof(T), true), 1)   \
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
  launch_grid(kKernels[int(cell)][int(type)], shape, args, memory, stream);
}

void launch_grid_backward(Cell cell, Type type, const GridShape& shape, const Both<Backward>& args,
                          const GridMemory& memory, Stream stream) {
  static void (*const kKernels[kNumCells][kNumTypes])(Both<Backward>, GridMemory) =
      SEQKERN_TABLE(grid_backward);
  launch_grid(kKernels[int(cell)][int(type)], shape, args, memory, stream);
}

}  // namespace seqkern::cuda
