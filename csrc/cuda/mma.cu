// The tensor-core kernels for bfloat16 and float16: m16n8k16 products.
//
// A block takes 8 or 16 rows of the batch and some groups of 8 units through a chunk. `splits`
// warps share a group's sum, a run of its terms each; their partial sums are added in a fixed
// order. Where one warp has all terms, its lanes go on with what they have. A warp keeps the first
// fragments of its share of W_hh in registers (mma.h), the others lie in shared memory in the order
// in which its lanes need them.
//
// Forward, W_hh is the M operand, gates^T = W_hh h^T, and rows of the batch the columns. The rows
// of a group's tiles are ordered so that the accumulators of a lane hold all gates of its (unit,
// row) pairs: rows 0-7 of the first tile are gate 0 of the 8 units, rows 8-15 gate 1, and so on in
// the second tile. Backward, rows of the batch are the M operand and 8 units the columns: grad_h =
// d W_hh, where d are the gate gradients of all units.
//
// What crosses units, h forward and d backward, lies where all can read it in tiles of 8 columns:
// in the shared memory of a block that has all units, two buffers of it; else in global memory, two
// buffers too, written and read in whole runs (exchange.cuh).
#include "cuda/exchange.cuh"
#include "cuda/mma.h"
#include "cuda/pointwise.cuh"

namespace seqkern::cuda {

namespace {

constexpr int kUnits = kMmaUnits;

// Two 16-bit values, read as one.
typedef uint32_t __attribute__((may_alias)) Word;

SEQKERN_DEVICE int64_t first_row(const Steps& s) {
  return s.offsets ? s.offsets[s.begin] : s.begin * s.batch;
}

// Of a step: the first of the block's rows in the sequence, and how many of these there are.
struct Rows {
  int64_t row;
  int active;
};

// held[i] = value(i), kBy at a time. They are shifted in, so that the loop need not be unrolled:
// else all that its iterations compute would need registers at once.
template <int kBy, int kCount, class V, class F>
SEQKERN_DEVICE void fill(V (&held)[kCount], F value) {
  static_assert(kCount % kBy == 0);
#pragma unroll 1
  for (int first = 0; first < kCount; first += kBy) {
    V next[kBy];
#pragma unroll
    for (int i = 0; i < kBy; ++i) next[i] = value(first + i);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      held[i] = i + kBy < kCount ? held[i + kBy] : next[i + kBy - kCount];
  }
}

// What a warp knows of its place, in either pass. kTiles: sets of 8 rows of the block's.
template <class Args, int kTiles, bool kSplit>
struct Place {
  static constexpr int kRows = 8 * kTiles;
  // The (unit, row) pairs of a group, as so many for each lane of a warp; with splits several warps
  // share them, at least two.
  static constexpr int kSlots = kUnits * kRows / 32, kPairs = kSplit ? kSlots / 2 : kSlots;

  int H, lane, warp, warps, groups, splits, group, split, first_group;
  int64_t first_row_of_batch;
  int first_step, last_step, share;  // of the sum's steps of 16 terms, this warp's
  int64_t set;                       // blocks that share rows and direction

  SEQKERN_DEVICE Place(const Args& a, const MmaMemory& m, int steps)
      : H(static_cast<int>(a.H)),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        warps(blockDim.x / 32),
        groups(m.groups),
        splits(m.splits),
        group(warp / m.splits),
        split(warp % m.splits),
        first_group(blockIdx.x * m.groups),
        first_row_of_batch(int64_t{blockIdx.z} * kRows),
        share((steps + m.splits - 1) / m.splits),
        set(blockIdx.z * gridDim.y + blockIdx.y) {
    first_step = split * share;
    last_step = first_step + share < steps ? first_step + share : steps;
  }
  SEQKERN_DEVICE int slot(int p) const { return kSplit ? p * warps + warp : group * kSlots + p; }
  // Of the thread's pair p: the group in the block, and which of the group's slots it is.
  SEQKERN_DEVICE int group_of(int p) const { return kSplit ? slot(p) / kSlots : group; }
  SEQKERN_DEVICE int slot_of(int p) const { return kSplit ? slot(p) % kSlots : p; }
  // Whether the thread has a pair p at all; it may be past the last unit.
  SEQKERN_DEVICE bool has(int p) const {
    return group_of(p) < groups && (first_group + group_of(p)) * kUnits < H;
  }
  SEQKERN_DEVICE int active(const Step& s) const {
    const int64_t rows = s.rows - first_row_of_batch;
    return static_cast<int>(rows < 0 ? 0 : rows < kRows ? rows : kRows);
  }
};

// ---- Forward ----

// A lane's part of a 16 x 16 tile of W_hh; value(row, column) is the matrix.
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

// sums[16][rows] += weights[16][16] h^T[16][rows], where the lane's word of h's first tile is `h`.
template <class T, int kTiles>
SEQKERN_DEVICE void multiply(float (&sums)[kTiles][4], const uint4& weights, const Word* h) {
  const uint32_t a[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const uint32_t b[2] = {h[n * 32], h[(kTiles + n) * 32]};
    mma_m16n8k16<T>(sums[n], a, b);
  }
}

template <class C, class T, int kTiles, bool kSplit>
SEQKERN_DEVICE void forward_in(const Both<Forward>& args, const MmaMemory& m) {
  using Here = Place<Forward, kTiles, kSplit>;
  constexpr int G = C::kGates, kGateTiles = (G + 1) / 2, kSums = kGateTiles * kTiles * 4;
  constexpr int kRows = Here::kRows, kPairs = Here::kPairs;
  constexpr int kHeld = kMmaHeldForward<kTiles, kSplit> / kGateTiles;  // steps of the sum
  constexpr int kStepWords = 2 * kTiles * 32;                          // of h
  const Forward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H), k_steps = (H + 15) / 16, tiles = (H + 7) / 8;
  const int ldo = static_cast<int>(a.ldo);
  const Here here(a, m, k_steps);
  const int lane = here.lane, rest = here.share > kHeld ? here.share - kHeld : 0;
  const bool several = gridDim.x > 1;
  const Published published(m.counters + here.set, gridDim.x);

  // weights[warp][step][tile][lane]: a lane's fragment; h [buffer][k / 8][row][k % 8]; with splits
  // the partial sums [warp][sum][lane].
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  uint4* const weights = reinterpret_cast<uint4*>(shared);
  const int h_size = k_steps * 16 * kRows;
  T* const h = reinterpret_cast<T*>(weights + here.warps * rest * kGateTiles * 32);
  float* const partials = reinterpret_cast<float*>(h + (several ? 1 : 2) * h_size);
  // The same in global memory, in the places of the tiles that there are.
  const int sent_size = tiles * 8 * kRows;
  T* const sent = as<T>(m.exchange) + here.set * 2 * sent_size;

  const T zero = from_float<T>(0.f);
  const auto weight = [&](int t, int k_step) {
    return fragment_of<T>(lane, [&](int row, int column) {
      const int gate = 2 * t + row / kUnits, k = k_step * 16 + column;
      const int unit = (here.first_group + here.group) * kUnits + row % kUnits;
      return gate < G && unit < H && k < H && k_step < here.last_step
                 ? as<T>(a.w_hh)[(int64_t{gate} * H + unit) * H + k]
                 : zero;
    });
  };
  uint4 held[kHeld * kGateTiles] = {};
  fill<kGateTiles>(held,
                   [&](int i) { return weight(i % kGateTiles, here.first_step + i / kGateTiles); });
  uint4* const w = weights + here.warp * rest * kGateTiles * 32 + lane;
  for (int j = 0; j < rest; ++j) {
#pragma unroll
    for (int t = 0; t < kGateTiles; ++t) {
      w[(j * kGateTiles + t) * 32] = weight(t, here.first_step + kHeld + j);
    }
  }

  // The thread's (unit, row) pairs.
  const auto unit_of = [&](int p) {
    return (here.first_group + here.group_of(p)) * kUnits + lane / 4;
  };
  const auto row_of = [&](int p) {
    return here.slot_of(p) / 2 * 8 + 2 * (lane % 4) + here.slot_of(p) % 2;
  };
  const auto exists = [&](int p) { return here.has(p) && unit_of(p) < H; };
  const int64_t base = first_row(a.steps);
  const int steps = static_cast<int>(a.steps.end - a.steps.begin);
  const auto step = [&](int i) {
    return step_at(a.steps, a.steps.reverse ? a.steps.end - 1 - i : a.steps.begin + i);
  };
  const Step s = step(0);
  // h before the first step, zeros past the last unit and row. It is not read from a.h, which a
  // block that is done writes.
  for (int i = threadIdx.x; i < (several ? 1 : 2) * h_size; i += blockDim.x) {
    const int k = i / (8 * kRows) * 8 + i % 8;
    const int64_t r = here.first_row_of_batch + i / 8 % kRows;
    T value = zero;
    if (k < H && r < a.steps.batch) {
      value =
          r < s.continued ? as<T>(a.output)[(s.before + r) * a.ldo + k] : as<T>(a.h_0)[r * H + k];
    }
    h[i] = value;
  }
  // Without splits the pairs of a lane are of one unit.
  float bias[kSplit ? kPairs : 1][G + 1] = {}, x[kPairs][G] = {};
  float c[kPairs] = {}, own_h[kPairs] = {};
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int unit = unit_of(p);
    const int64_t r = here.first_row_of_batch + row_of(p);
    if (!exists(p)) continue;
#pragma unroll
    for (int g = 0; g <= G; ++g) bias[kSplit ? p : 0][g] = as<float>(a.bias)[g * H + unit];
    if (r < a.steps.batch) {
      own_h[p] = to_float(as<T>(a.h)[r * H + unit]);
      if constexpr (C::kHasCellState) c[p] = as<float>(a.c)[r * H + unit];
    }
  }
  // What the step's sums begin with; returns where its rows are.
  const auto read_x = [&](const Step& at) {
    const int active = here.active(at);
    const int64_t row = at.row + here.first_row_of_batch;
    const float* const first = as<float>(a.x) + (row - base) * (G * a.H);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      if (exists(p) && row_of(p) < active) {
        const float* from = first + (row_of(p) * (G * H) + unit_of(p));
#pragma unroll
        for (int g = 0; g < G; ++g) x[p][g] = from[g * H];
      }
    }
    return Rows{row, active};
  };
  Rows now = read_x(s), next{};
  __syncthreads();

  for (int i = 0; i < steps; ++i) {
    // Without splits the sums begin with what is added to the product anyway, but for a gate with a
    // bias inside of its product.
    float sums[kGateTiles][kTiles][4] = {}, apart[kPairs] = {};
    if constexpr (!kSplit) {
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const bool inside = C::kRecurrentBias && g == G - 1;
          sums[g / 2][p / 2][2 * (g % 2) + p % 2] = inside ? bias[0][G] : x[p][g] + bias[0][g];
          if (inside) apart[p] = x[p][g] + bias[0][g];
        }
      }
      if (i + 1 < steps) next = read_x(step(i + 1));  // on its way while this step computes
    }
    if (several && i > 0) {
      published.wait(i);
      // A warp of a lone group copies what it multiplies.
      const bool own = here.groups == 1;
      const int end = 2 * here.last_step < tiles ? 2 * here.last_step : tiles;
      const T* const from = sent + i % 2 * sent_size;
      const int stop = (own ? end : tiles) * 8 * kRows, stride = own ? 32 * 8 : blockDim.x * 8;
      for (int at = own ? 2 * here.first_step * 8 * kRows + lane * 8 : threadIdx.x * 8; at < stop;
           at += stride) {
        cp_async<16>(h + at, from + at);
      }
      cp_async_commit();
      cp_async_wait<0>();
      if (own) {
        __syncwarp();
      } else {
        __syncthreads();
      }
    }

    if (now.active > 0) {
      const Word* const mine =
          reinterpret_cast<const Word*>(h + (several ? 0 : i % 2) * h_size) + lane;
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        if (here.first_step + j < here.last_step) {
#pragma unroll
          for (int t = 0; t < kGateTiles; ++t) {
            multiply<T>(sums[t], held[j * kGateTiles + t],
                        mine + (here.first_step + j) * kStepWords);
          }
        }
      }
#pragma unroll 1
      for (int k = here.first_step + kHeld; k < here.last_step; ++k) {
#pragma unroll
        for (int t = 0; t < kGateTiles; ++t) {
          multiply<T>(sums[t], w[((k - here.first_step - kHeld) * kGateTiles + t) * 32],
                      mine + k * kStepWords);
        }
      }
    }
    if constexpr (kSplit) {
      float* to = partials + here.warp * kSums * 32 + lane;
#pragma unroll
      for (int t = 0; t < kGateTiles; ++t) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int f = 0; f < 4; ++f) to[((t * kTiles + n) * 4 + f) * 32] = sums[t][n][f];
        }
      }
      __syncthreads();
    }

    T* const to = several ? sent + (i + 1) % 2 * sent_size : h + (i + 1) % 2 * h_size;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int unit = unit_of(p), b = row_of(p);
      if (exists(p) && b < now.active) {
        float q[G] = {}, from_x[G] = {};
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const bool inside = C::kRecurrentBias && g == G - 1;
          if constexpr (kSplit) {
            const int slot = here.slot_of(p);
            const int sum = (g / 2 * kTiles + slot / 2) * 4 + 2 * (g % 2) + slot % 2;
            const float* from =
                partials + (here.group_of(p) * here.splits * kSums + sum) * 32 + lane;
            if (inside) q[g] = bias[p][G];
            for (int k = 0; k < here.splits; ++k) q[g] += from[k * kSums * 32];
            from_x[g] = x[p][g] + bias[p][g];
          } else {
            q[g] = sums[g / 2][p / 2][2 * (g % 2) + p % 2];
            if (inside) from_x[g] = apart[p];
          }
        }
        const T rounded =
            from_float<T>(forward_unit<C, T>(a, now.row, b, unit, from_x, q, own_h[p], c[p]));
        (as<T>(a.output) + now.row * a.ldo)[b * ldo + unit] = rounded;
        own_h[p] = to_float(rounded);
      }
      if (here.has(p)) to[(unit / 8 * kRows + b) * 8 + unit % 8] = from_float<T>(own_h[p]);
    }
    if (kSplit && i + 1 < steps) next = read_x(step(i + 1));
    if (several) {
      published.publish();
    } else {
      __syncthreads();
    }
    now = next;
  }
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int64_t r = here.first_row_of_batch + row_of(p);
    if (exists(p) && r < a.steps.batch) {
      as<T>(a.h)[r * H + unit_of(p)] = from_float<T>(own_h[p]);
      if constexpr (C::kHasCellState) store_c<T>(a, r * H + unit_of(p), c[p]);
    }
  }
}

// ---- Backward ----

// A sum's terms are gate gradients in the order (group of 8 units, gate, unit of the group), two
// groups' gates to a step of 16. A step of d is stored as the product's lanes need it:
// [step][lane][half of the step][set of 8 rows], two values each.
template <int kTiles>
using Fragment = std::conditional_t<kTiles == 2, uint4, uint2>;  // of d, a lane's

template <class C, class T, int kTiles, bool kSplit>
SEQKERN_DEVICE void backward_in(const Both<Backward>& args, const MmaMemory& m) {
  using Here = Place<Backward, kTiles, kSplit>;
  constexpr int G = C::kGates, kRows = Here::kRows, kPairs = Here::kPairs, kSlots = Here::kSlots;
  constexpr int kHeld = kMmaHeldBackward<kTiles, kSplit>, kLaneWords = 2 * kTiles;
  constexpr bool kCarries = C::kHasCellState || C::kCarriesGradH;
  const Backward& a = args.direction[blockIdx.y];
  const int H = static_cast<int>(a.H), tiles = (H + 7) / 8 * G, j_steps = (tiles + 1) / 2;
  const Here here(a, m, j_steps);
  const int lane = here.lane, rest = here.share > kHeld ? here.share - kHeld : 0;
  const bool several = gridDim.x > 1;
  const Published published(m.counters + here.set, gridDim.x);

  // weights[warp][step][lane]: a lane's fragment; where one block has all units d, two buffers;
  // with splits the partial sums [warp][slot][lane].
  SEQKERN_DYNAMIC_SHARED(unsigned char, shared);
  uint2* const weights = reinterpret_cast<uint2*>(shared);
  const int d_size = j_steps * 16 * kRows;
  T* const own_d = reinterpret_cast<T*>(weights + here.warps * rest * 32);
  float* const partials = reinterpret_cast<float*>(own_d + (several ? 0 : 2) * d_size);
  T* const d = several ? as<T>(m.exchange) + here.set * 2 * d_size : own_d;

  const T zero = from_float<T>(0.f);
  const auto weight = [&](int j_step) {
    const int unit = (here.first_group + here.group) * kUnits + lane / 4;
    uint32_t r[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int tile = 2 * j_step + half, from = tile / G * 8 + 2 * (lane % 4);
      const auto value = [&](int u) {
        return tile < tiles && u < H && unit < H && j_step < here.last_step
                   ? as<T>(a.w_hh)[(int64_t{tile % G} * H + u) * H + unit]
                   : zero;
      };
      r[half] = pack<T>(value(from), value(from + 1));
    }
    return make_uint2(r[0], r[1]);
  };
  uint2 held[kHeld] = {};
  fill<4>(held, [&](int j) { return weight(here.first_step + j); });
  uint2* const w = weights + here.warp * rest * 32 + lane;
  for (int j = 0; j < rest; ++j) w[j * 32] = weight(here.first_step + kHeld + j);
  if (!several) {
    for (int i = threadIdx.x; i < 2 * d_size; i += blockDim.x) own_d[i] = zero;
  }

  // The thread's (unit, row) pairs.
  const auto unit_of = [&](int p) {
    return (here.first_group + here.group_of(p)) * kUnits + 2 * (lane % 4) + here.slot_of(p) % 2;
  };
  const auto row_of = [&](int p) { return here.slot_of(p) / 2 * 8 + lane / 4; };
  const auto exists = [&](int p) { return here.has(p) && unit_of(p) < H; };
  float grad_h[kPairs] = {}, grad_state[kPairs] = {};
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int64_t r = here.first_row_of_batch + row_of(p);
    if (exists(p) && r < a.steps.batch) {
      grad_h[p] = as<float>(a.grad_h)[r * H + unit_of(p)];
      if constexpr (kCarries) grad_state[p] = as<float>(a.grad_state)[r * H + unit_of(p)];
    }
  }
  const int64_t base = first_row(a.steps);
  const int steps = static_cast<int>(a.steps.end - a.steps.begin);
  const auto step = [&](int i) {
    return step_at(a.steps, a.steps.reverse ? a.steps.begin + i : a.steps.end - 1 - i);
  };
  BackwardInput<C, T> in[kPairs];
  // What is known of a step before its grad_h is; returns where its rows are.
  const auto read = [&](Step at) {
    const int active = here.active(at);
    // Of this block's rows.
    const int64_t first = here.first_row_of_batch;
    at = {at.row + first, at.rows - first, at.before + first, at.continued - first};
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      in[p] = exists(p) && row_of(p) < active
                  ? read_backward<C, T>(a, at, at.row - base, first, row_of(p), unit_of(p))
                  : BackwardInput<C, T>{};
    }
    return Rows{at.row, active};
  };
  Rows now = read(step(0));
  __syncthreads();

  for (int i = 0; i < steps; ++i) {
    T* const to = d + i % 2 * d_size;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      float gates[C::kGradGates] = {};
      if (exists(p) && row_of(p) < now.active) {
        backward_unit<C, T>(a, now.row, now.row - base, row_of(p), unit_of(p), in[p], grad_h[p],
                            grad_state[p], gates);
      }
      if (here.has(p)) {
        const int first = (here.first_group + here.group_of(p)) * G, slot = here.slot_of(p);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          const int tile = first + g;
          const int word = (tile / 2 * 32 + lane) * kLaneWords + tile % 2 * kTiles + slot / 2;
          to[word * 2 + slot % 2] = from_float<T>(gates[g]);
        }
      }
    }
    const int active = now.active;
    if (i + 1 < steps) now = read(step(i + 1));  // on its way while this step's products are made
    if (several) {
      published.publish();
      published.wait(i + 1);
    } else {
      __syncthreads();
    }

    // Two chains of products, which do not wait for each other.
    float sums[2][4] = {};
    if (active > 0) {
      const auto* const mine = reinterpret_cast<const Fragment<kTiles>*>(to) + lane;
      const auto multiply = [&](float (&sum)[4], int j, const uint2& weights_of_step) {
        const Fragment<kTiles> rows = mine[j * 32];
        const uint32_t b[2] = {weights_of_step.x, weights_of_step.y};
        if constexpr (kTiles == 2) {
          const uint32_t of_rows[4] = {rows.x, rows.y, rows.z, rows.w};
          mma_m16n8k16<T>(sum, of_rows, b);
        } else {
          const uint32_t of_rows[4] = {rows.x, 0, rows.y, 0};
          mma_m16n8k16<T>(sum, of_rows, b);
        }
      };
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        if (here.first_step + j < here.last_step) {
          multiply(sums[j % 2], here.first_step + j, held[j]);
        }
      }
#pragma unroll 4
      for (int j = 0; j < here.last_step - here.first_step - kHeld; ++j) {
        multiply(sums[0], here.first_step + kHeld + j, w[j * 32]);
      }
    }
    if constexpr (kSplit) {
#pragma unroll
      for (int f = 0; f < kSlots; ++f) {
        partials[(here.warp * kSlots + f) * 32 + lane] = sums[0][f] + sums[1][f];
      }
      __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      if (!here.has(p) || row_of(p) >= active) continue;
      if constexpr (kSplit) {
        const float* from =
            partials + (here.group_of(p) * here.splits * kSlots + here.slot_of(p)) * 32 + lane;
        grad_h[p] = 0;
        for (int k = 0; k < here.splits; ++k) grad_h[p] += from[k * kSlots * 32];
      } else {
        grad_h[p] = sums[0][p] + sums[1][p];
      }
    }
  }
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    const int64_t r = here.first_row_of_batch + row_of(p);
    if (exists(p) && r < a.steps.batch) {
      as<float>(a.grad_h)[r * H + unit_of(p)] = grad_h[p];
      if constexpr (kCarries) as<float>(a.grad_state)[r * H + unit_of(p)] = grad_state[p];
    }
  }
}

// Each instantiation where a launch asks for it.
template <class C, class T>
SEQKERN_DEVICE void mma_forward(const Both<Forward>& args, const MmaMemory& m) {
  if (m.rows == 8) {
    m.splits == 1 ? forward_in<C, T, 1, false>(args, m) : forward_in<C, T, 1, true>(args, m);
  } else {
    m.splits == 1 ? forward_in<C, T, 2, false>(args, m) : forward_in<C, T, 2, true>(args, m);
  }
}

template <class C, class T>
SEQKERN_DEVICE void mma_backward(const Both<Backward>& args, const MmaMemory& m) {
  if (m.rows == 8) {
    m.splits == 1 ? backward_in<C, T, 1, false>(args, m) : backward_in<C, T, 1, true>(args, m);
  } else {
    m.splits == 1 ? backward_in<C, T, 2, false>(args, m) : backward_in<C, T, 2, true>(args, m);
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
  memory.rows = shape.rows;
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
