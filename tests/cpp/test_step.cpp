// One level's single steps, on weights as they lie and packed, against the double-precision step of
// the default level on random cells: few rows and many, short sums and long ones, from a state and
// from zeros, in either order of the units, by one thread and by several. Needs neither torch nor
// Python.
//   test_step [number of cells]
#include <cmath>
#include <cstdio>
#include <vector>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/kernels.h"
#include "random_values.h"

using namespace seqkern;
using namespace seqkern::cpu;

namespace {

struct Sizes {
  Cell cell;
  int64_t B, I, H;
  int gates, saved;
};

struct Inputs {
  Doubles x, h, c, w_ih, w_hh, b_ih, b_hh;
};

struct Way {
  bool packed, back, streams, from_zero;
  int threads;
};

template <class T>
Doubles run(const LayerKernels<T>& kernels, const Sizes& s, const Inputs& in, const Way& way) {
  const auto as = [](const Doubles& from) { return std::vector<T>(from.begin(), from.end()); };
  const auto pointer = [](auto& v) { return v.empty() ? nullptr : v.data(); };
  // Exact sizes: AddressSanitizer sees the first element past the end.
  std::vector<T> x = as(in.x), h = as(in.h), c = as(in.c), w_ih = as(in.w_ih), w_hh = as(in.w_hh),
                 b_ih = as(in.b_ih), b_hh = as(in.b_hh), output(s.B * s.H), c_n(c.size()),
                 gates(s.B * s.saved * s.H);
  if (way.packed) {
    const auto pack = [&](std::vector<T>& w, int64_t k) {
      std::vector<T> to(kernels.packed_gates_size(s.gates, s.H, k));
      kernels.pack_gates(w.data(), k, s.gates, s.H, k, to.data(), 0, 1);
      w = std::move(to);
    };
    pack(w_ih, s.I);
    pack(w_hh, s.H);
  }
  const StepArgs<T> args{.B = s.B,
                         .I = s.I,
                         .H = s.H,
                         .x = x.data(),
                         .h = h.data(),
                         .c = pointer(c),
                         .w_ih = w_ih.data(),
                         .w_hh = way.from_zero ? nullptr : w_hh.data(),
                         .b_ih = pointer(b_ih),
                         .b_hh = pointer(b_hh),
                         .output = output.data(),
                         .ldo = s.H,
                         .c_n = pointer(c_n),
                         .gates = pointer(gates),
                         .back = way.back,
                         .from_zero = way.from_zero,
                         .streams = way.streams};
  const auto step = (way.packed ? kernels.packed_step : kernels.step)[static_cast<int>(s.cell)];
  for (int i = 0; i < way.threads; ++i) step(args, i, way.threads);
  Doubles all(output.begin(), output.end());
  all.insert(all.end(), c_n.begin(), c_n.end());
  all.insert(all.end(), gates.begin(), gates.end());
  return all;
}

int failures = 0;

void compare(const Sizes& s, const Way& way, int bits, const Doubles& got, const Doubles& exact,
             double allowed) {
  const Error error(got, exact);
  if (error.within(allowed)) return;
  ++failures;
  std::printf(
      "FAIL f%d: relative error %.3g (allowed %.3g); cell %d B %ld I %ld H %ld packed %d back %d "
      "streams %d from_zero %d threads %d\n",
      bits, error.relative(), allowed, static_cast<int>(s.cell), long(s.B), long(s.I), long(s.H),
      way.packed, way.back, way.streams, way.from_zero, way.threads);
}

template <class C>
void take(Sizes& s) {
  s.gates = C::kGates, s.saved = C::kSaved;
}

}  // namespace

int main(int argc, char** argv) {
  const int cells = count_argument(argc, argv, 400);
  Random random;
  const KernelTable& level = SEQKERN_CAPABILITY::table();
  const int64_t lanes = level.vector_bytes / 4;
  const int64_t sizes[] = {1,         3,         lanes - 1,     lanes,          lanes + 1,
                           4 * lanes, 5 * lanes, 7 * lanes + 5, 17 * lanes - 1, 33 * lanes};
  for (int i = 0; i < cells; ++i) {
    Sizes s{};
    s.cell = static_cast<Cell>(i % kNumCells);
    s.B = random.pick(0, 1) ? random.pick(1, 2) : random.pick(3, 20);
    s.I = sizes[random.pick(0, 9)], s.H = sizes[random.pick(0, random.pick(0, 3) ? 7 : 9)];
    if (s.cell == Cell::Lstm) take<Lstm>(s);
    if (s.cell == Cell::Gru) take<Gru>(s);
    if (s.cell == Cell::RnnTanh) take<RnnTanh>(s);
    if (s.cell == Cell::RnnRelu) take<RnnRelu>(s);
    Way way{.packed = random.pick(0, 2) == 0,
            .back = random.pick(0, 1) != 0,
            .streams = random.pick(0, 1) != 0,
            .from_zero = false,
            .threads = static_cast<int>(random.pick(1, 3))};
    way.from_zero = !way.packed && random.pick(0, 2) == 0;
    const int64_t width = s.gates * s.H;
    const bool bias = random.pick(0, 3) > 0;
    const Inputs in{random.values(s.B * s.I, 1),
                    way.from_zero ? Doubles(s.B * s.H) : random.values(s.B * s.H, 1),
                    s.cell == Cell::Lstm ? random.values(s.B * s.H, 1) : Doubles(),
                    random.values(width * s.I, 1 / std::sqrt(double(s.I))),
                    random.values(width * s.H, 1 / std::sqrt(double(s.H))),
                    bias ? random.values(width, 1) : Doubles(),
                    bias ? random.values(width, 1) : Doubles()};
    const Doubles exact = run(DEFAULT::table().f64, s, in, {.threads = 1});
    compare(s, way, 64, run(level.f64, s, in, way), exact, 1e-13);
    compare(s, way, 32, run(level.f32, s, in, way), exact, 1e-5);
  }
  std::printf("test_step: %d cells, vectors of %d bytes, %d failures\n", cells, level.vector_bytes,
              failures);
  return failures != 0;
}
