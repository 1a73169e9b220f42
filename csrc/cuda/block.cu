// The block-persistent tier: a block takes 1, 2 or 4 rows of the batch through all steps of a
// chunk, with W_hh in registers and, where these are full, in shared memory; c and the gradients of
// h and c are in registers too. Blocks never wait for each other; a step is one __syncthreads.
//
// A warp owns kBlockUnits hidden units. A group of its lanes owns kBlockPairs pairs of a unit and a
// row and shares their sums: each lane takes a run of consecutive terms for all pairs. So a value
// that a lane reads from shared memory serves as many units as there is room for, whatever the
// rows. Then the lanes' sums are exchanged, and the first kBlockPairs lanes do the pointwise part,
// a pair each.
#include "cuda/block.h"
#include "cuda/pointwise.cuh"

namespace seqkern::cuda {

namespace {

static_assert(kBlockPairs == 4, "exchange() is written for it");

// N values that are loaded together, with one instruction where they are 16 bytes.
template <class A, int N>
struct alignas(N % 4 == 0 && sizeof(A) * N >= 16 ? 16
               : N == 2                          ? 2 * sizeof(A)
                                                 : sizeof(A)) Pack {
  A v[N];
};

// A thread's place.
template <int kRows>
struct Place {
  static constexpr int kUnits = kBlockPairs / kRows, kParts = block_parts(kRows);
  int part;       // lane of the group
  int unit, row;  // the lane's pair
  int tile;       // the block's first row of the batch
  int r;          // the pair's
  bool exists;    // the lane has a pair, whose unit and row exist

  SEQKERN_DEVICE Place(int H, int64_t batch) {
    const int tid = threadIdx.x, pair = tid % kBlockPairs;
    part = tid % kParts;
    unit = tid / kParts * kUnits + pair / kRows;
    row = pair % kRows;
    tile = static_cast<int>(blockIdx.x) * kRows;
    r = tile + row;
    exists = part < kBlockPairs && unit < H && r < batch;
  }
  // The group's units, the lane's own first.
  SEQKERN_DEVICE int of(int u) const { return unit ^ u; }
};

// The sums of a group's lanes for its pairs, added up: lane i gets pair i's, and so does each lane
// with the same i % kBlockPairs. A lane has its own unit's sums first (Place::of), so that nothing
// has to be selected but rows.
template <int kRows, class A>
SEQKERN_DEVICE A exchange(const A (&sums)[kBlockPairs], int part) {
  const bool high = kRows == 4 && part & 2, odd = kRows > 1 && part & 1;
  const A a = (high ? sums[2] : sums[0]) + __shfl_xor_sync(~0u, high ? sums[0] : sums[2], 2);
  const A b = (high ? sums[3] : sums[1]) + __shfl_xor_sync(~0u, high ? sums[1] : sums[3], 2);
  A sum = (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 1);
#pragma unroll
  for (int lanes = kBlockPairs; lanes < block_parts(kRows); lanes *= 2) {
    sum += __shfl_xor_sync(~0u, sum, lanes);
  }
  return sum;
}

// W_hh, or its transpose, times the values in shared memory: kOutputs sums for each pair. A lane
// keeps the weights of its first kHeld terms in registers, with kAll of all that there can be.
template <class C, class T, int kRows, int kSize, int kOutputs>
class Product {
  using A = Math<T>;
  static constexpr int kWeights = block_held(sizeof(T), kSize, C::kGates) * C::kGates / kOutputs;
  static constexpr int kHeld = kWeights * kRows / kBlockPairs;
  static constexpr bool kAll = 4 * kWeights * kOutputs == kSize * C::kGates;
  static constexpr int kUnits = Place<kRows>::kUnits, kParts = Place<kRows>::kParts;
  static constexpr int kVector = 16 / sizeof(A);
  static constexpr int kRun = block_run(kOutputs);
  using Values = Pack<A, kRows>;
  using Weights = Pack<A, kRun * kOutputs>;

 public:
  // `memory`: shared, room for two buffers of values, and behind them what registers do not hold.
  // weight(output, unit, k) is asked where `unit` and `k` exist. All threads of the block call
  // this; then values are zeros, and may be stored.
  template <class Weight>
  SEQKERN_DEVICE Product(const Place<kRows>& me, int H, int width, A* memory, Weight weight)
      : sum_(block_sum(kAll ? kHeld * kParts : width, kRows, kHeld, kOutputs, sizeof(A))),
        part_(me.part),
        values_(memory) {
    const int threads = blockDim.x, size = 2 * kParts * sum_.stride;
    rest_ = reinterpret_cast<Weights*>(memory + size) + threadIdx.x;
    const auto read = [&](int output, int u, int term) {
      const int unit = me.of(u), k = me.part * sum_.terms + term;
      return term < sum_.terms && unit < H && k < width ? weight(output, unit, k) : A(0);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
#pragma unroll
        for (int g = 0; g < kOutputs; ++g) held_[i][u][g] = read(g, u, i);
      }
    }
    Weights* to = rest_;
    for (int first = kHeld; first < sum_.terms; first += kRun) {
      for (int u = 0; u < kUnits; ++u, to += threads) {
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
#pragma unroll
          for (int g = 0; g < kOutputs; ++g) to->v[i * kOutputs + g] = read(g, u, first + i);
        }
      }
    }
    for (int i = threadIdx.x; i < size; i += threads) memory[i] = 0;
    __syncthreads();
  }

  // Where the value k of a row lies in the buffer that `buffer` (0 or 1) says.
  SEQKERN_DEVICE int index(int k, int row) const {
    return k / sum_.terms * sum_.stride + k % sum_.terms * kRows + row;
  }
  SEQKERN_DEVICE A* values(int buffer) const { return values_ + buffer * kParts * sum_.stride; }

  // The lane's pair's. All lanes of a warp call this.
  SEQKERN_DEVICE void multiply(int buffer, A (&out)[kOutputs]) const {
    A sums[kOutputs][kBlockPairs] = {};
    const A* const mine = values(buffer) + part_ * sum_.stride;
#pragma unroll
    for (int j = 0; j < kHeld * kRows; j += kVector) {
      const Pack<A, kVector> value = *reinterpret_cast<const Pack<A, kVector>*>(mine + j);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const int i = (j + e) / kRows, row = (j + e) % kRows;
        if (i >= kHeld) continue;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
#pragma unroll
          for (int g = 0; g < kOutputs; ++g)
            sums[g][u * kRows + row] += held_[i][u][g] * value.v[e];
        }
      }
    }
    const int threads = blockDim.x;
    const Weights* from = rest_;
#pragma unroll(kHeld > 0 ? 1 : 4)
    for (int first = kHeld; first < sum_.terms; first += kRun) {
      Values value[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        // Zeros past the last term.
        value[i] = *reinterpret_cast<const Values*>(mine + (first + i) * kRows);
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u, from += threads) {
        const Weights w = *from;
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
#pragma unroll
          for (int g = 0; g < kOutputs; ++g) {
#pragma unroll
            for (int row = 0; row < kRows; ++row) {
              sums[g][u * kRows + row] += w.v[i * kOutputs + g] * value[i].v[row];
            }
          }
        }
      }
    }
#pragma unroll
    for (int g = 0; g < kOutputs; ++g) out[g] = exchange<kRows>(sums[g], part_);
  }

 private:
  BlockSum sum_;
  int part_;
  A* values_;
  Weights* rest_;
  A held_[kHeld > 0 ? kHeld : 1][kUnits][kOutputs];
};

// The steps of a chunk as a pass takes them. Rows are counted from the chunk's first, so that few
// and short instructions find the next step's.
struct Chunk {
  const int64_t* offsets;  // of the chunk's first step, or null
  int64_t base;            // the chunk's first row
  int batch, steps;
  int lowest, highest;  // steps that exist, counted from the chunk's first: one beside it if any
  bool reverse, descending;

  SEQKERN_DEVICE Chunk(const Steps& s, bool backward)
      : offsets(s.offsets ? s.offsets + s.begin : nullptr),
        base(s.offsets ? s.offsets[s.begin] : s.begin * s.batch),
        batch(static_cast<int>(s.batch)),
        steps(static_cast<int>(s.end - s.begin)),
        lowest(s.begin > 0 ? -1 : 0),
        highest(s.end < s.total ? steps : steps - 1),
        reverse(s.reverse),
        descending(s.reverse != backward) {}

  // As Step's.
  struct At {
    int row, rows, before, continued;
  };
  SEQKERN_DEVICE At at(int i) const {
    const int t = descending ? steps - 1 - i : i, u = reverse ? t + 1 : t - 1;
    const bool continues = u >= lowest && u <= highest;
    if (!offsets) return {t * batch, batch, u * batch, continues ? batch : 0};
    const auto row = [&](int step) { return static_cast<int>(offsets[step] - base); };
    const int n = row(t + 1) - row(t);
    if (!continues) return {row(t), n, 0, 0};
    const int m = row(u + 1) - row(u);
    return {row(t), n, row(u), m < n ? m : n};
  }
};

// Whether registers have room for the next step's input beside all that a step needs. Else it is
// asked for when the step needs less: forward after the product, backward after the pointwise part.
template <class C, int kSize>
inline constexpr bool kEarly = C::kGates == 1 || kSize < kBlockLargest;

template <class C, class T, int kRows, int kSize>
SEQKERN_DEVICE void block_forward(const Both<Forward>& args) {
  using A = Math<T>;
  constexpr int G = C::kGates;
  const Forward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H);
  const Place<kRows> me(H, a.steps.batch);
  const int unit = me.unit;
  const int r = me.r;
  SEQKERN_DYNAMIC_SHARED(A, shared);
  const Product<C, T, kRows, kSize, G> product(me, H, H, shared, [&](int g, int u, int k) {
    return A(to_float(as<T>(a.w_hh)[(g * H + u) * H + k]));
  });

  A bias[G + 1] = {}, c{};
  const int own = product.index(unit, me.row);
  if (me.exists) {
#pragma unroll
    for (int g = 0; g <= G; ++g) bias[g] = as<A>(a.bias)[g * H + unit];
    product.values(0)[own] = to_float(as<T>(a.h)[int64_t{r} * H + unit]);
    if constexpr (C::kHasCellState) c = as<A>(a.c)[int64_t{r} * H + unit];
  }
  __syncthreads();

  const Chunk chunk(a.steps, false);
  struct Input {
    int row, rows;
    A x[G];
  };
  const auto active = [&](const Input& in) { return me.exists && r < in.rows; };
  const auto read = [&](int i) {
    const Chunk::At at = chunk.at(i);
    Input in{at.row, at.rows, {}};
    if (active(in)) {
      const A* from = as<A>(a.x) + int64_t{in.row + r} * (G * H) + unit;
#pragma unroll
      for (int g = 0; g < G; ++g) in.x[g] = from[g * H];
    }
    return in;
  };
  Input in = read(0);
  int buffer = 0;
  for (int i = 0; i < chunk.steps; ++i) {
    const auto prefetch = [&] { return read(i + 1 < chunk.steps ? i + 1 : i); };
    Input next{};
    // Uniform over the block: none of its rows has begun yet, or all have ended.
    const bool idle = me.tile >= in.rows;
    if (kEarly<C, kSize> || idle) next = prefetch();
    if (!idle) {
      A q[G];
      product.multiply(buffer, q);
      if (!kEarly<C, kSize>) next = prefetch();
      A h = me.exists ? product.values(buffer)[own] : A(0);
      if (active(in)) {
#pragma unroll
        for (int g = 0; g < G; ++g) in.x[g] += bias[g];
        if constexpr (C::kRecurrentBias) q[G - 1] += bias[G];
        const int64_t row = chunk.base + (in.row + r);
        const T rounded =
            from_float<T>(forward_unit<C, T>(a, row, int64_t{0}, int64_t{unit}, in.x, q, h, c));
        as<T>(a.output)[row * a.ldo + unit] = rounded;
        h = to_float(rounded);
      }
      buffer ^= 1;
      if (me.exists) product.values(buffer)[own] = h;
      __syncthreads();
    }
    in = next;
  }
  if (me.exists) {
    as<T>(a.h)[int64_t{r} * H + unit] = from_float<T>(product.values(buffer)[own]);
    if constexpr (C::kHasCellState) store_c<T>(a, int64_t{r} * H + unit, c);
  }
}

// W_hh's rows, rotated as the gate gradients' recurrent columns, are summed over.
template <class C, class T, int kRows, int kSize>
SEQKERN_DEVICE void block_backward(const Both<Backward>& args) {
  using A = Math<T>;
  constexpr int G = C::kGates;
  constexpr bool kCarries = C::kHasCellState || C::kCarriesGradH;
  const Backward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H);
  const Place<kRows> me(H, a.steps.batch);
  const int unit = me.unit;
  const int r = me.r;
  SEQKERN_DYNAMIC_SHARED(A, shared);
  const Product<C, T, kRows, kSize, 1> product(me, H, G * H, shared, [&](int, int u, int j) {
    return A(to_float(as<T>(a.w_hh)[j * H + u]));
  });

  A grad_h{}, grad_state{};
  int own[G];
#pragma unroll
  for (int g = 0; g < G; ++g) own[g] = product.index(g * H + unit, me.row);
  if (me.exists) {
    grad_h = as<A>(a.grad_h)[int64_t{r} * H + unit];
    if constexpr (kCarries) grad_state = as<A>(a.grad_state)[int64_t{r} * H + unit];
  }

  const Chunk chunk(a.steps, true);
  struct Input {
    int row, rows;
    BackwardInput<C, T> known;
  };
  const auto active = [&](const Input& in) { return me.exists && r < in.rows; };
  const auto read = [&](int i) {
    const Chunk::At at = chunk.at(i);
    Input in{at.row, at.rows, {}};
    const Step s{chunk.base + at.row, at.rows, chunk.base + at.before, at.continued};
    if (active(in)) in.known = read_backward<C, T>(a, s, in.row, 0, int64_t{r}, int64_t{unit});
    return in;
  };
  Input in = read(0);
  int buffer = 0;
  for (int i = 0; i < chunk.steps; ++i) {
    const auto prefetch = [&] { return read(i + 1 < chunk.steps ? i + 1 : i); };
    Input next{};
    const bool idle = me.tile >= in.rows;
    if (kEarly<C, kSize> || idle) next = prefetch();
    if (!idle) {
      A gates[C::kGradGates] = {};
      if (active(in)) {
        backward_unit<C, T>(a, chunk.base + in.row, in.row, int64_t{r}, int64_t{unit}, in.known,
                            grad_h, grad_state, gates);
      }
      if (me.exists) {
#pragma unroll
        for (int g = 0; g < G; ++g) {
          product.values(buffer)[own[g]] = to_float(from_float<T>(gates[g]));
        }
      }
      if (!kEarly<C, kSize>) next = prefetch();
      __syncthreads();
      A sum[1];
      product.multiply(buffer, sum);
      if (active(in)) grad_h = sum[0];
      buffer ^= 1;
    }
    in = next;
  }
  if (me.exists) {
    as<A>(a.grad_h)[int64_t{r} * H + unit] = grad_h;
    if constexpr (kCarries) as<A>(a.grad_state)[int64_t{r} * H + unit] = grad_state;
  }
}

// A kernel, and what it is for.
template <class Args>
struct Variant {
  Cell cell;
  Type type;
  int rows;
  int size;
  void (*kernel)(Both<Args>);
};

template <class Args, int N>
void launch_block(const Variant<Args> (&variants)[N], Cell cell, Type type, const BlockShape& shape,
                  const Both<Args>& args, Stream stream) {
  for (const Variant<Args>& v : variants) {
    if (v.cell != cell || v.type != type || v.rows != shape.rows || v.size != shape.size) continue;
    const int64_t tiles = (args.direction[0].steps.batch + shape.rows - 1) / shape.rows;
    allow_shared_memory(v.kernel, shape.shared);
    launch(v.kernel, dim3(static_cast<unsigned>(tiles), args.count), dim3(shape.threads),
           shape.shared, stream, args);
    return;
  }
  throw std::logic_error("seqkern: no kernel of the block tier has this shape");
}

}  // namespace

// ---- Kernels: seqkern_CELL_block_PASS_TYPE_rROWS_hSIZE(arguments) ----

// M(pass, cell's name, cell, type's enumerator, type, rows, size, suffix) for each.
#define SEQKERN_BLOCK_KERNELS(M, pass, cell, C)      \
  M(pass, cell, C, F32, float, 1, 48, f32_r1_h48)    \
  M(pass, cell, C, F32, float, 1, 96, f32_r1_h96)    \
  M(pass, cell, C, F32, float, 1, 128, f32_r1_h128)  \
  M(pass, cell, C, F32, float, 2, 48, f32_r2_h48)    \
  M(pass, cell, C, F32, float, 2, 96, f32_r2_h96)    \
  M(pass, cell, C, F32, float, 2, 128, f32_r2_h128)  \
  M(pass, cell, C, F32, float, 4, 48, f32_r4_h48)    \
  M(pass, cell, C, F32, float, 4, 96, f32_r4_h96)    \
  M(pass, cell, C, F32, float, 4, 128, f32_r4_h128)  \
  M(pass, cell, C, BF16, bf16, 1, 48, bf16_r1_h48)   \
  M(pass, cell, C, BF16, bf16, 1, 96, bf16_r1_h96)   \
  M(pass, cell, C, BF16, bf16, 1, 128, bf16_r1_h128) \
  M(pass, cell, C, F16, f16, 1, 48, f16_r1_h48)      \
  M(pass, cell, C, F16, f16, 1, 96, f16_r1_h96)      \
  M(pass, cell, C, F16, f16, 1, 128, f16_r1_h128)    \
  M(pass, cell, C, F64, double, 4, 128, f64_r4_h128)
#define SEQKERN_KERNEL(pass, Args, C, T, rows, size, name)             \
  extern "C" __global__ void __launch_bounds__(block_threads(size), 1) \
      name(SEQKERN_PARAMETER Both<Args> args) {                        \
    block_##pass<C, T, rows, size>(args);                              \
  }
#define SEQKERN_FORWARD_KERNEL(pass, cell, C, _, T, rows, size, suffix) \
  SEQKERN_KERNEL(forward, Forward, C, T, rows, size, seqkern_##cell##_block_forward_##suffix)
#define SEQKERN_BACKWARD_KERNEL(pass, cell, C, _, T, rows, size, suffix) \
  SEQKERN_KERNEL(backward, Backward, C, T, rows, size, seqkern_##cell##_block_backward_##suffix)
#define SEQKERN_VARIANT(pass, cell, C, type, T, rows, size, suffix) \
  {Cell::C, Type::type, rows, size, seqkern_##cell##_block_##pass##_##suffix},
#define SEQKERN_CELL_KERNELS(cell, C, _)                          \
  SEQKERN_BLOCK_KERNELS(SEQKERN_FORWARD_KERNEL, forward, cell, C) \
  SEQKERN_BLOCK_KERNELS(SEQKERN_BACKWARD_KERNEL, backward, cell, C)
#define SEQKERN_CELL_VARIANTS(cell, C, pass) SEQKERN_BLOCK_KERNELS(SEQKERN_VARIANT, pass, cell, C)
SEQKERN_FOR_CELLS(SEQKERN_CELL_KERNELS, )

void launch_block_forward(Cell cell, Type type, const BlockShape& shape, const Both<Forward>& args,
                          Stream stream) {
  static const Variant<Forward> kVariants[] = {SEQKERN_FOR_CELLS(SEQKERN_CELL_VARIANTS, forward)};
  launch_block(kVariants, cell, type, shape, args, stream);
}

void launch_block_backward(Cell cell, Type type, const BlockShape& shape,
                           const Both<Backward>& args, Stream stream) {
  static const Variant<Backward> kVariants[] = {SEQKERN_FOR_CELLS(SEQKERN_CELL_VARIANTS, backward)};
  launch_block(kVariants, cell, type, shape, args, stream);
}

}  // namespace seqkern::cuda
