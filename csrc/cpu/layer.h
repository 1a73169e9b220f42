// The time loops: one forward, one backward, for every cell. A step is a product with packed
// weights, tile by tile, and the cell's pointwise maths as each tile's epilogue.
#pragma once

#include "cpu/dots.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/tile.h"

namespace seqkern::cpu::SEQKERN_CAPABILITY {

// Step t as seen by a direction. "before" and "after" are in the direction's own order of time.
struct Step {
  int64_t t;
  int64_t row;     // first row
  int64_t rows;    // active rows
  int64_t before;  // first row of the step before, and how many rows continue from it
  int64_t continued;
  int64_t after;  // the same for the step after
  int64_t continuing;
};

SEQKERN_INLINE Step step_at(const Steps& s, int64_t t) {
  const auto rows = [&](int64_t u) { return s.offsets[u + 1] - s.offsets[u]; };
  const auto valid = [&](int64_t u) { return u >= 0 && u < s.total; };
  const auto shared = [&](int64_t u) {
    return valid(u) ? (rows(u) < rows(t) ? rows(u) : rows(t)) : 0;
  };
  const int64_t before = s.reverse ? t + 1 : t - 1, after = s.reverse ? t - 1 : t + 1;
  return {t,
          s.offsets[t],
          rows(t),
          valid(before) ? s.offsets[before] : 0,
          shared(before),
          valid(after) ? s.offsets[after] : 0,
          shared(after)};
}

// Values that a tile or an array hands to an epilogue: element (row, unit vector u, gate).
template <class T>
struct Source {
  const T* p;
  int64_t row_stride, unit_stride, gate_stride;
  SEQKERN_INLINE const T* at(int64_t row, int64_t u, int64_t gate) const {
    return p + row * row_stride + u * unit_stride + gate * gate_stride;
  }
};

// Calls multiply-and-epilogue for the rows [begin, end) in tiles of nearly equal height, `most` at
// most: a last tile of one row would read the whole panel for it. multiply(first, rows, out) leaves
// [rows, Vectors*lanes] in out.
template <class T, int Vectors, class Multiply, class Epilogue>
SEQKERN_INLINE void for_tiles(int64_t begin, int64_t end, int64_t most, Multiply&& multiply,
                              Epilogue&& epilogue) {
  alignas(64) Arithmetic<T> out[kMaxRows * Vectors * kLanesOf<T>];
  const int64_t n = end - begin, tiles = ceil_div(n, most);
  for (int64_t i = 0; i < tiles; ++i) {
    const Range tile = share(n, int(i), int(tiles));
    const int64_t first = begin + tile.begin, rows = tile.end - tile.begin;
    multiply(first, int(rows), out);
    epilogue(first, rows, out);
  }
}

// With a packed panel of so many vectors, for the rows of a. Meanwhile the panel to be read next
// comes from the third cache into the second, by parts, with each of the first tiles: the tiles
// that follow read the panel that they have from the second, so that the third would be idle. One
// tile alone would wait: where most panels come from the third (far), it asks for its own earlier
// than the processor does by itself. Two or three tiles, each of which reads the whole panel, are
// slower than one or two that are as high as half its vectors allow, with one half of them after
// the other.
template <class T, int Vectors, class Epilogue>
SEQKERN_INLINE void for_tiles(int64_t begin, int64_t end, const T* a, int64_t lda, const T* panel,
                              int64_t panel_vectors, const T* next, int64_t k, bool far,
                              Epilogue&& epilogue) {
  using A = Arithmetic<T>;
  using O = Operand<T>;
  constexpr int64_t kTerms = kOperandTerms<T>;
  const int64_t most = max_rows(Vectors), n = k / kTerms, rows_in_all = end - begin;
  const O* ahead = operands(next);
  const O* const last = ahead + n * Vectors * kLanesOf<T>;
  const bool whole = panel_vectors == Vectors;
  if constexpr (Vectors == 4 && kVectorBytes == 64) {
    constexpr int64_t high = max_rows(2), half = 2 * kLanesOf<T>;
    const int64_t tiles = ceil_div(rows_in_all, high);
    if (whole && tiles <= 2 && rows_in_all > tiles * most) {
      for_tiles<T, Vectors>(
          begin, end, high,
          [&](int64_t first, int rows, A* out) {
            for (int64_t column = 0; column < 2 * half; column += half) {
              const auto product = tiles == 1 ? product_for<A, 2, O, kOwnAhead, Vectors>(rows)
                                              : product_for<A, 2, O, 1, Vectors>(rows);
              product(out + column, operands(a + first * lda), lda / kTerms,
                      operands(panel) + column, n, false, ahead);
              ahead += n * kLanesOf<T>;
            }
          },
          epilogue);
      return;
    }
  }
  const bool own = far && whole && 1 < rows_in_all && rows_in_all <= most;
  // Vectors to a tile for each of k: with fewer tiles than a panel has vectors two.
  const int64_t vectors = rows_in_all <= most || !whole         ? 0
                          : rows_in_all <= most * (Vectors - 1) ? 2
                                                                : 1;
  for_tiles<T, Vectors>(
      begin, end, most,
      [&](int64_t first, int rows, A* out) {
        const bool more = vectors > 0 && ahead < last;
        const auto product = own            ? product_for<A, Vectors, O, kOwnAhead>(rows)
                             : !more        ? product_of_panel<A, Vectors, O>(panel_vectors, rows)
                             : vectors == 1 ? product_for<A, Vectors, O, 1>(rows)
                                            : product_for<A, Vectors, O, 2>(rows);
        product(out, operands(a + first * lda), lda / kTerms, operands(panel), n, false, ahead);
        ahead += n * vectors * kLanesOf<T>;
      },
      epilogue);
}

// With the weights of panel p where they lie, [Gates*units, k].
template <class T, int Gates, class Epilogue>
SEQKERN_INLINE void for_dot_tiles(int64_t begin, int64_t end, const T* a, int64_t lda, const T* w,
                                  int64_t units, int64_t k, int64_t p, Epilogue&& epilogue) {
  constexpr int kLanes = Simd<T>::kLanes, kVectors = panel_vectors(Gates);
  for_tiles<T, kVectors>(
      begin, end, kDotRows,
      [&](int64_t first, int rows, T* out) {
        const DotVector<T> multiply = dot_vector_for<T>(rows);
        for (int v = 0; v < kVectors; ++v) {
          const int64_t gate = v % Gates, unit = (p * kVectors + v) / Gates * kLanes;
          if (unit >= units) break;
          multiply(out + v * kLanes, kVectors * kLanes, unit, units,
                   {w + gate * units * k, a + first * lda, lda, k});
        }
      },
      epilogue);
}

SEQKERN_INLINE Range intersection(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// Which panels and rows a thread works on.
struct Part {
  const Worker& worker;
  bool back = false;  // the last panel comes first

  // Begins a step, the i-th. Every other one takes the panels from the last to the first where the
  // worker alternates: what the step before it read last is what is still in the cache.
  SEQKERN_INLINE void begin(int64_t i) { back = worker.alternate && i % 2 != 0; }

  // Calls f(p, next, rows) for what this thread does of a step's rows with n panels, and the panel
  // that follows, maybe in the next step. Split rows: each panel for the rows of the thread's
  // groups. Split units: whole panels, and some rows of those that are shared.
  template <class F>
  SEQKERN_INLINE void deal(int64_t n, int64_t rows, F&& f) const {
    const int index = worker.index, count = worker.count;
    const bool by_rows = bool(worker.groups);
    const int64_t left = by_rows ? 0 : panels_shared_by_rows(n, rows, count), whole = n - left;
    const Range mine = by_rows ? Range{0, n} : share(whole, index, count),
                items = share(left * rows, index, count),
                mine_of_rows = by_rows ? share(worker.groups, rows, index, count) : Range{0, rows};
    if (mine_of_rows.begin == mine_of_rows.end) return;
    const int64_t panels = mine.end - mine.begin;
    const auto panel = [&](int64_t j) { return back ? mine.end - 1 - j : mine.begin + j; };
    for (int64_t j = 0, item = items.begin; j < panels || item < items.end; ++j) {
      if (j < panels) {
        // An alternating worker reads its last panel again.
        const int64_t next = j + 1 < panels ? j + 1 : worker.alternate ? j : 0;
        f(panel(j), panel(next), mine_of_rows);
      } else {
        const int64_t skipped = item / rows;
        const Range some =
            intersection({0, rows}, {item - skipped * rows, items.end - skipped * rows});
        f(whole + skipped, mine.begin, some);
        item += some.end - some.begin;
      }
    }
  }
  SEQKERN_INLINE void wait() const {
    if (!worker.groups) worker.barrier->wait(worker.index, worker.count);
  }
};

// The recurrent products of a step, begun before the other threads have arrived at the barrier
// before it. A step of few rows takes little longer than a barrier, so a thread multiplies with
// what it made itself, of its own units, while it waits for those of the others. Segments: how many
// terms a panel has for each unit, `units` apart; Gates: of its columns.
template <class T, int Gates, int Segments>
struct EarlyProducts {
  static constexpr int Vectors = panel_vectors(Gates);
  using A = Arithmetic<T>;
  static constexpr int64_t kWidth = Vectors * kLanesOf<T>, kMost = 2048,
                           kUnits = unit_vectors(Gates) * kLanesOf<T>;
  // Of weights to a thread: with more the products take long enough, and reading each panel in two
  // parts is slower.
  static constexpr int64_t kMostBytes = 512 * 1024;

  const Worker& worker;
  const T* const panels;
  const int64_t units, count;
  const Range mine, own;  // panels and units
  bool pending = false;
  uint32_t arrival = 0;
  alignas(64) A sums[kMost];

  SEQKERN_INLINE EarlyProducts(const Worker& worker, const T* panels, int64_t units)
      : worker(worker),
        panels(panels),
        units(units),
        count(num_panels<T>(Gates, units)),
        mine(share(count, worker.index, worker.count)),
        own(intersection({0, units}, {mine.begin * kUnits, mine.end * kUnits})) {}

  // Arrives at the barrier and returns true where two steps can do so: both have few rows, and all
  // rows of the one after the barrier go on from the one before.
  SEQKERN_INLINE bool arrive(int64_t rows, int64_t rows_after, int64_t going_on) {
    if (!suits(rows) || !suits(rows_after) || going_on != rows_after) return false;
    arrival = worker.barrier->arrive(worker.index, worker.count);
    pending = true;
    return true;
  }
  // Begins the products with a [rows, Segments*units] and waits; before the last of them, which
  // leaves time to fetch what the others made.
  SEQKERN_INLINE void begin(int64_t rows, const T* a, int64_t lda) {
    for (int64_t p = mine.begin; p < mine.end; ++p) {
      if (p + 1 == mine.end) {
        worker.barrier->wait_for(worker.index, worker.count, arrival);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t i = 0; i < units * Segments; i += 64 / sizeof(T)) {
            __builtin_prefetch(a + r * lda + i);
          }
        }
      }
      multiply(p, rows, a, lda, own, false);
    }
    pending = false;
  }
  // Of a row of all units what belongs to this thread's.
  template <class P>
  SEQKERN_INLINE void fetch_own(const P* row) const {
    for (int64_t i = own.begin; i < own.end; i += 64 / sizeof(P)) __builtin_prefetch(row + i);
  }
  // The sums of panel p, whole.
  SEQKERN_INLINE A* end(int64_t p, int64_t rows, const T* a, int64_t lda) {
    multiply(p, rows, a, lda, {0, own.begin}, true);
    multiply(p, rows, a, lda, {own.end, units}, true);
    return sums + (p - mine.begin) * rows * kWidth;
  }

 private:
  SEQKERN_INLINE bool suits(int64_t rows) const {
    const int64_t width = (mine.end - mine.begin) * kWidth;
    return !worker.groups && worker.count > 1 && rows <= max_rows(Vectors) && width > 0 &&
           width * rows <= kMost && width * units * Segments * int64_t(sizeof(T)) <= kMostBytes &&
           panels_shared_by_rows(count, rows, worker.count) == 0;
  }
  SEQKERN_INLINE void multiply(int64_t p, int64_t rows, const T* a, int64_t lda, Range terms,
                               bool add) {
    constexpr int64_t kTerms = kOperandTerms<T>;
    if (terms.begin >= terms.end) return;
    const int64_t vectors = panel_at<T>(Gates, units, p).vectors;
    const auto product = product_of_panel<A, Vectors, Operand<T>>(vectors, int(rows));
    const T* const panel = panels + p * panel_size<T>(Gates, units * Segments);
    for (int64_t segment = 0; segment < Segments; ++segment) {
      const int64_t first = segment * units + terms.begin;
      product(sums + (p - mine.begin) * rows * kWidth, operands(a + first), lda / kTerms,
              operands(panel + first * vectors * kLanesOf<T>), (terms.end - terms.begin) / kTerms,
              add || segment > 0, nullptr);
    }
  }
};

// Calls f(unit, u, access) for each vector of units of panel p.
template <class T, int UnitVectors, class F>
SEQKERN_INLINE void for_unit_vectors(int64_t p, int64_t units, F&& f) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int64_t u = 0; u < UnitVectors; ++u) {
    const int64_t unit = (p * UnitVectors + u) * kLanes;
    if (units - unit >= kLanes) {
      f(unit, u, Access<T, true>{kLanes});
    } else if (units > unit) {
      f(unit, u, Access<T, false>{units - unit});
    }
  }
}

// ---------------------------------------------------------------------------------------- forward

// The gates of `AtOnce` rows, then their states: where those take a tanh that waits for the
// sigmoids, a processor that looks no more than about two rows ahead finds too little to do
// meanwhile.
template <class C, class T, int AtOnce>
void forward_epilogue_of(const ForwardArgs<T>& a, const Step& s, int64_t p, int64_t first,
                         int64_t rows, const Source<Arithmetic<T>>& recurrent) {
  using A = Arithmetic<T>;
  using V = Vec<A>;
  constexpr int G = C::kGates, S = C::kSaved;
  // What is added to an h that was rounded at every step gets lost where the gates are slow.
  constexpr bool kRunningH = C::kCarriesGradH && !std::is_same_v<T, A>;
  const int64_t H = a.H, chunk_row = s.row - a.steps.offsets[a.steps.begin],
                x_row = a.x_rows ? a.x_rows[s.t - a.steps.begin] : chunk_row;
  for_unit_vectors<A, unit_vectors(G)>(p, H, [&](int64_t unit, int64_t u, auto lanes) {
    V bias[G + 1], saved[AtOnce][S > 0 ? S : 1];
    for (int g = 0; g <= G; ++g) bias[g] = lanes.get(a.bias + g * H + unit);
    for (int64_t begin = 0; begin < rows; begin += AtOnce) {
      const int64_t end = AtOnce == 1 || begin + AtOnce < rows ? begin + AtOnce : rows;
      for (int64_t i = begin; i < end; ++i) {
        V x[G], q[G];
        for (int g = 0; g < G; ++g) {
          x[g] = lanes.get(a.x + (x_row + first + i) * a.ldx + g * H + unit) + bias[g];
          q[g] = lanes.get(recurrent.at(i, u, g));
        }
        if constexpr (C::kRecurrentBias) q[G - 1] += bias[G];
        C::template activate<Math<A>>(x, q, saved[i - begin]);
      }
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = first + i, row = chunk_row + r;
        V c{}, h_prev{};
        if constexpr (kRunningH) {
          h_prev = lanes.get(a.h + r * H + unit);
        } else if constexpr (C::kCarriesGradH) {
          h_prev = lanes.get(
              (r < s.continued ? a.output + (s.before + r) * a.ldo : a.h_0 + r * a.K) + unit);
        }
        if constexpr (C::kHasCellState) c = lanes.get(a.c + r * H + unit);
        const auto& gates = saved[i - begin];
        const V h = C::template combine<Math<A>>(gates, h_prev, c);
        if constexpr (kRunningH) lanes.put(a.h + r * H + unit, h);
        if constexpr (C::kHasCellState) {
          lanes.put(a.c + r * H + unit, c);
          if (a.cells) lanes.put(a.cells + row * H + unit, c);
        }
        if constexpr (S > 0) {
          if (a.gates) {
            for (int k = 0; k < S; ++k) lanes.put(a.gates + row * (S * H) + k * H + unit, gates[k]);
          }
        }
        T* to = a.hidden ? a.hidden + r * H : a.output + (s.row + r) * a.ldo;
        lanes.put(to + unit, h);
      }
    }
  });
}

template <class C, class T>
SEQKERN_INLINE void forward_epilogue(const ForwardArgs<T>& a, const Step& s, int64_t p,
                                     int64_t first, int64_t rows,
                                     const Source<Arithmetic<T>>& recurrent) {
  const bool one = !C::kHasCellState || rows == 1;
  constexpr int kMany = C::kHasCellState ? kMaxRows : 1;
  const auto epilogue = one ? forward_epilogue_of<C, T, 1> : forward_epilogue_of<C, T, kMany>;
  epilogue(a, s, p, first, rows, recurrent);
}

template <class C, class T>
void forward(const ForwardArgs<T>& a, const Worker& worker) {
  using A = Arithmetic<T>;
  constexpr int G = C::kGates, kVectors = panel_vectors(G), kLanes = kLanesOf<T>;
  Part part{worker};
  const int64_t H = a.H, K = a.K;
  EarlyProducts<T, G, 1> early(worker, a.w_hh, H);
  const auto step = [&](int64_t i) {
    return step_at(a.steps, a.steps.reverse ? a.steps.begin + a.steps.end - 1 - i : i);
  };
  for (int64_t i = a.steps.begin; i < a.steps.end; ++i) {
    const Step s = step(i);
    const T* const h_prev = a.output + s.before * a.ldo;
    const bool begun = early.pending;
    part.begin(i);
    if (begun) early.begin(s.rows, h_prev, a.ldo);
    part.deal(num_panels<T>(G, H), s.rows, [&](int64_t p, int64_t next_panel, Range rows) {
      if (a.product) {
        const int64_t unit = p * unit_vectors(G) * kLanes;
        if (rows.begin < rows.end) {
          forward_epilogue<C>(a, s, p, rows.begin, rows.end - rows.begin,
                              Source<A>{a.product + rows.begin * G * H + unit, G * H, kLanes, H});
        }
        return;
      }
      const Range old = intersection(rows, {0, s.continued}),
                  fresh = intersection(rows, {s.continued, s.rows});
      const Panel shape = panel_at<T>(G, H, p);
      const auto epilogue = [&](int64_t first, int64_t rows, const A* out) {
        forward_epilogue<C>(a, s, p, first, rows,
                            Source<A>{out, shape.vectors * kLanes, kLanes, shape.units});
      };
      const auto without_product = [&](Range rows) {
        alignas(64) static constexpr A kZero[kLanesOf<T>] = {};
        forward_epilogue<C>(a, s, p, rows.begin, rows.end - rows.begin, Source<A>{kZero, 0, 0, 0});
      };
      if (begun) {
        epilogue(0, s.rows, early.end(p, s.rows, h_prev, a.ldo));
        return;
      }
      if constexpr (std::is_same_v<T, A>) {
        if (a.plain_w_hh) {
          const auto of_dots = [&](int64_t first, int64_t rows, const A* out) {
            forward_epilogue<C>(a, s, p, first, rows,
                                Source<A>{out, kVectors * kLanes, G * kLanes, kLanes});
          };
          for_dot_tiles<T, G>(old.begin, old.end, h_prev, a.ldo, a.w_hh, H, K, p, of_dots);
          if (a.from_zero) {
            without_product(fresh);
          } else {
            for_dot_tiles<T, G>(fresh.begin, fresh.end, a.h_0, K, a.w_hh, H, K, p, of_dots);
          }
          return;
        }
      }
      const T *panel = a.w_hh + p * panel_size<T>(G, K),
              *next = a.w_hh + next_panel * panel_size<T>(G, K);
      for_tiles<T, kVectors>(old.begin, old.end, h_prev, a.ldo, panel, shape.vectors, next, K,
                             worker.alternate, epilogue);
      if (fresh.begin >= fresh.end) return;
      if (a.from_zero) {
        without_product(fresh);
        return;
      }
      for_tiles<T, kVectors>(fresh.begin, fresh.end, a.h_0, K, panel, shape.vectors, next, K,
                             worker.alternate, epilogue);
    });
    if (i + 1 < a.steps.end && !a.w_hr && !a.plain_w_hh) {
      const Step following = step(i + 1);
      if (early.arrive(s.rows, following.rows, following.continued)) {
        // Other threads made a part of the input products.
        const A* const x = a.x + (following.row - a.steps.offsets[a.steps.begin]) * a.ldx;
        for (int64_t r = 0; r < following.rows; ++r) {
          for (int g = 0; g < G; ++g) early.fetch_own(x + r * a.ldx + g * H);
        }
        continue;
      }
    }
    part.wait();
    if (a.w_hr) {
      part.deal(num_panels<T>(1, K), s.rows, [&](int64_t p, int64_t next_panel, Range all) {
        const int64_t vectors = panel_at<T>(1, K, p).vectors;
        for_tiles<T, kPlainVectors>(
            all.begin, all.end, a.hidden, H, a.w_hr + p * panel_size<T>(1, H), vectors,
            a.w_hr + next_panel * panel_size<T>(1, H), H, worker.alternate,
            [&](int64_t first, int64_t rows, const A* out) {
              for_unit_vectors<A, kPlainVectors>(p, K, [&](int64_t unit, int64_t u, auto lanes) {
                for (int64_t r = 0; r < rows; ++r) {
                  lanes.put(a.output + (s.row + first + r) * a.ldo + unit,
                            load<A>(out + (r * vectors + u) * kLanes));
                }
              });
            });
      });
      part.wait();
    }
  }
}

// --------------------------------------------------------------------------------------- backward

// The gates of a chunk again, from both its products: what forward computed and did not save.
template <class C, class T>
void activate(const ActivateArgs<T>& a, const Worker& worker) {
  if constexpr (C::kSaved > 0) {
    using A = Arithmetic<T>;
    using V = Vec<A>;
    constexpr int G = C::kGates, S = C::kSaved;
    const int64_t H = a.H;
    const Range mine = share(a.rows, worker.index, worker.count);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      for (int64_t p = 0; p < num_panels<T>(G, H); ++p) {
        for_unit_vectors<A, unit_vectors(G)>(p, H, [&](int64_t unit, int64_t, auto lanes) {
          V x[G], q[G], saved[S];
          for (int g = 0; g < G; ++g) {
            const int64_t i = row * G * H + g * H + unit;
            x[g] = lanes.get(a.x + i) + lanes.get(a.bias + g * H + unit);
            q[g] = a.product ? lanes.get(a.product + i) : V{};
          }
          if constexpr (C::kRecurrentBias) q[G - 1] += lanes.get(a.bias + G * H + unit);
          C::template activate<Math<A>>(x, q, saved);
          for (int k = 0; k < S; ++k) lanes.put(a.gates + row * S * H + k * H + unit, saved[k]);
        });
      }
    }
  }
}

// dLoss/dh_t before a projection's transpose: recurrent part + grad_output.
template <class T>
void projected_grad(const BackwardArgs<T>& a, const Step& s, int64_t p, int64_t first, int64_t rows,
                    const Source<Arithmetic<T>>& recurrent) {
  using A = Arithmetic<T>;
  const int64_t chunk_row = s.row - a.steps.offsets[a.steps.begin];
  const T* const grads = a.grad_output.of_step(s.t, s.row);
  for_unit_vectors<A, kPlainVectors>(p, a.K, [&](int64_t unit, int64_t u, auto lanes) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = first + i;
      const Vec<A> grad_h =
          lanes.get(recurrent.at(i, u, 0)) + lanes.get(grads + r * a.grad_output.row + unit);
      lanes.put(a.grad_h + (chunk_row + r) * a.K + unit, grad_h);
      if (a.step_grad_h) lanes.put(a.step_grad_h + (s.row + r) * a.K + unit, grad_h);
    }
  });
}

template <class C, class T>
void backward_epilogue(const BackwardArgs<T>& a, const Step& s, int64_t p, int64_t first,
                       int64_t rows, const Source<Arithmetic<T>>& recurrent) {
  using A = Arithmetic<T>;
  using V = Vec<A>;
  constexpr int S = C::kSaved, GG = C::kGradGates;
  const int64_t H = a.H, chunk_row = s.row - a.steps.offsets[a.steps.begin];
  // From a step's rows to those of the next one to be done. What that reads is fetched now: a line
  // here and there, which lies in memory where the sequence is long.
  const int64_t onward = s.before - s.row;
  const T* const grads = a.grad_output.of_step(s.t, s.row);
  const T* const next_grads =
      s.continued > 0 ? a.grad_output.of_step(a.steps.reverse ? s.t + 1 : s.t - 1, s.before)
                      : grads;
  for_unit_vectors<A, kPlainVectors>(p, H, [&](int64_t unit, int64_t u, auto lanes) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = first + i, row = chunk_row + r;
      const auto fetch = [&](auto* rows_of_all, int64_t ld) __attribute__((always_inline)) {
        __builtin_prefetch(rows_of_all + (r + onward) * ld + unit, 0, 3);
      };
      if (!a.w_hr) __builtin_prefetch(next_grads + r * a.grad_output.row + unit, 0, 3);
      for (int k = 0; k < S; ++k) fetch(a.gates + chunk_row * (S * H) + k * H, S * H);
      if constexpr (C::kHasCellState) fetch(a.cells + s.before * H, H);
      if constexpr (C::kCarriesGradH) fetch(a.output + s.before * a.ldo, a.ldo);
      if constexpr (S == 0) fetch(a.output + s.row * a.ldo, a.ldo);
      V saved[S > 0 ? S : 1], d[GG], c{}, c_prev{}, h_prev{}, h{}, grad_state{}, grad_c{};
      V grad_h = lanes.get(recurrent.at(i, u, 0));
      if (!a.w_hr) grad_h += lanes.get(grads + r * a.grad_output.row + unit);
      if constexpr (C::kHasCellState || C::kCarriesGradH) {
        grad_state = lanes.get(a.grad_state + r * H + unit);
      }
      if constexpr (C::kCarriesGradH) {
        grad_h += grad_state;
        h_prev = lanes.get((r < s.continued ? a.output + (s.before + r) * a.ldo : a.h_0 + r * a.K) +
                           unit);
      }
      if constexpr (S > 0) {
        for (int k = 0; k < S; ++k) saved[k] = lanes.get(a.gates + row * (S * H) + k * H + unit);
      } else {
        h = lanes.get(a.output + (s.row + r) * a.ldo + unit);
      }
      if constexpr (C::kHasCellState) {
        c = lanes.get(a.cells + (s.row + r) * H + unit);
        c_prev = lanes.get((r < s.continued ? a.cells + (s.before + r) * H : a.c_0 + r * H) + unit);
        if (a.hidden) lanes.put(a.hidden + row * H + unit, C::template hidden<Math<A>>(saved, c));
      }
      C::template backward<Math<A>>(grad_h, saved, c, c_prev, h_prev, h, grad_state, grad_c, d);
      for (int g = 0; g < GG; ++g) lanes.put(a.grad_gates + row * (GG * H) + g * H + unit, d[g]);
      if constexpr (C::kHasCellState || C::kCarriesGradH) {
        lanes.put(a.grad_state + r * H + unit, grad_state);
      }
      if (a.step_grad_h && !a.w_hr) lanes.put(a.step_grad_h + (s.row + r) * a.K + unit, grad_h);
      if constexpr (C::kHasCellState) {
        if (a.step_grad_c) lanes.put(a.step_grad_c + (s.row + r) * H + unit, grad_c);
      }
    }
  });
}

template <class C, class T>
void backward(const BackwardArgs<T>& a, const Worker& worker) {
  using A = Arithmetic<T>;
  constexpr int kLanes = kLanesOf<T>;
  Part part{worker};
  const Steps& steps = a.steps;
  const int64_t H = a.H, K = a.K;
  const int64_t width = C::kGradGates * H, k = C::kGates * H;
  EarlyProducts<T, 1, C::kGates> early(worker, a.w_hh, H);
  // Against the direction's own time.
  const auto step = [&](int64_t i) {
    return step_at(steps, steps.reverse ? i : steps.begin + steps.end - 1 - i);
  };
  for (int64_t i = steps.begin; i < steps.end; ++i) {
    const Step s = step(i);
    const T* const next = i > steps.begin
                              ? a.grad_gates + (s.after - steps.offsets[steps.begin]) * width
                              : a.grad_gates_next;
    const bool begun = early.pending;
    part.begin(i);
    if (begun) early.begin(s.rows, next, width);

    // The recurrent part of dLoss/dh_t, handed to `epilogue` tile by tile.
    const auto recurrent = [&](auto epilogue) {
      part.deal(num_panels<T>(1, K), s.rows, [&](int64_t p, int64_t next_panel, Range rows) {
        const int64_t vectors = panel_at<T>(1, K, p).vectors;
        if (begun) {
          epilogue(a, s, p, 0, s.rows,
                   Source<A>{early.end(p, s.rows, next, width), vectors * kLanes, kLanes, 0});
          return;
        }
        const Range going_on = intersection(rows, {0, s.continuing}),
                    ending = intersection(rows, {s.continuing, s.rows});
        if (going_on.begin < going_on.end) {
          for_tiles<T, kPlainVectors>(
              going_on.begin, going_on.end, next, width, a.w_hh + p * panel_size<T>(1, k), vectors,
              a.w_hh + next_panel * panel_size<T>(1, k), k, worker.alternate,
              [&](int64_t first, int64_t rows, const A* out) {
                epilogue(a, s, p, first, rows, Source<A>{out, vectors * kLanes, kLanes, 0});
              });
        }
        if (ending.begin < ending.end) {
          epilogue(
              a, s, p, ending.begin, ending.end - ending.begin,
              Source<A>{a.grad_h_n + ending.begin * K + p * kPlainVectors * kLanes, K, kLanes, 0});
        }
      });
    };

    if (!a.w_hr) {
      recurrent(backward_epilogue<C, T>);
    } else {
      recurrent(projected_grad<T>);
      part.wait();
      const T* grad_h = a.grad_h + (s.row - steps.offsets[steps.begin]) * K;
      part.deal(num_panels<T>(1, H), s.rows, [&](int64_t p, int64_t next_panel, Range all) {
        const int64_t vectors = panel_at<T>(1, H, p).vectors;
        for_tiles<T, kPlainVectors>(
            all.begin, all.end, grad_h, K, a.w_hr + p * panel_size<T>(1, K), vectors,
            a.w_hr + next_panel * panel_size<T>(1, K), K, worker.alternate,
            [&](int64_t first, int64_t rows, const A* out) {
              backward_epilogue<C>(a, s, p, first, rows,
                                   Source<A>{out, vectors * kLanes, kLanes, 0});
            });
      });
    }
    if (i + 1 < steps.end && !a.w_hr) {
      const Step following = step(i + 1);
      if (early.arrive(s.rows, following.rows, following.continuing)) continue;
    }
    part.wait();
  }
}

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
