// One level's kernels against the double-precision kernels of the default level, on random layers:
// every cell, both directions of time, ragged rows, projection, ready-made products, chunks, teams
// that split units or rows. Needs neither torch nor Python, so that a level can be tested in an
// emulator of a machine that is not there. The default level itself is held to torch.nn by the
// Python tests.
//   test_kernels [number of layers]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "random_values.h"

using namespace seqkern;
using namespace seqkern::cpu;

namespace {

struct Shape {
  Cell cell;
  int64_t T, B, H, K;
  bool projection, reverse, ragged, ready_product, plain_w_hh, split_rows, of_all, spaced,
      alternate, from_zero;
  int threads, groups;
  int64_t chunk_rows;
  std::vector<int64_t> offsets;
  int gates, saved, grad_gates, rotation;
};

template <class C>
void take(Shape& s) {
  s.gates = C::kGates, s.saved = C::kSaved, s.grad_gates = C::kGradGates;
  s.rotation = C::kGradRotation;
}

struct Inputs {
  Doubles x, bias, w_hh, w_hr, h_0, c_0, grad_output, grad_h_n, grad_c_n;
};

struct Outputs {
  Doubles output, c_n, gates, cells, grad_gates, grad_state, step_grad_h, step_grad_c, hidden,
      activated;
};

template <class T>
std::vector<T> as(const Doubles& from) {
  return std::vector<T>(from.begin(), from.end());
}

template <class T>
Doubles to_doubles(const std::vector<T>& from) {
  return Doubles(from.begin(), from.end());
}

template <class T>
Outputs run(const LayerKernels<T>& kernels, const Shape& s, const Inputs& in) {
  const int64_t H = s.H, K = s.K, G = s.gates, R = s.offsets.back(), B = s.offsets[1];
  const int cell = static_cast<int>(s.cell);
  const bool lstm = s.cell == Cell::Lstm;
  const int64_t width = s.grad_gates * H;
  const auto w_hh = as<T>(in.w_hh), w_hr = as<T>(in.w_hr), bias = as<T>(in.bias), x = as<T>(in.x);
  const auto h_0 = as<T>(in.h_0), c_0 = as<T>(in.c_0), grad_output = as<T>(in.grad_output),
             grad_h_n = as<T>(in.grad_h_n);
  // Exact sizes: AddressSanitizer sees the first element past the end.
  std::vector<T> packed(kernels.packed_gates_size(G, H, K)), packed_hr, output(R * K), c(c_0),
      gates(R * s.saved * H), cells(lstm ? R * H : 0), hidden(s.projection ? B * H : 0), product;
  if (s.projection) packed_hr.resize(kernels.packed_gates_size(1, K, H));
  if (s.ready_product) {
    product.resize(B * G * H);
    for (int64_t r = 0; r < B; ++r) {
      for (int64_t j = 0; j < G * H; ++j) {
        T sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += w_hh[j * K + k] * h_0[r * K + k];
        product[r * G * H + j] = sum;
      }
    }
  }
  const auto bounds = chunk_steps(s.offsets, s.chunk_rows);
  const int chunks = static_cast<int>(bounds.size()) - 1;
  const auto steps = [&](int i, bool from_last) {
    if (from_last) i = chunks - 1 - i;
    return Steps{s.offsets.data(), s.T, bounds[i], bounds[i + 1], s.reverse};
  };
  // The groups of all steps or of each chunk, and where x has its rows.
  std::vector<std::vector<int64_t>> groups;
  std::vector<int64_t> x_rows;
  int64_t x_size = 0;
  for (int i = 0; i < chunks; ++i) {
    const auto [first, last] =
        s.of_all ? std::pair(int64_t(0), s.T) : std::pair(bounds[i], bounds[i + 1]);
    groups.push_back(row_groups(s.offsets, first, last, s.groups).bounds);
  }
  for (int64_t t = 0; t < s.T; ++t) {
    x_rows.push_back(x_size);
    x_size += s.spaced ? B + 1 : s.offsets[t + 1] - s.offsets[t];
  }
  std::vector<T> spaced_x(x_size * G * H);
  for (int64_t t = 0; t < s.T; ++t) {
    std::copy(x.begin() + s.offsets[t] * G * H, x.begin() + s.offsets[t + 1] * G * H,
              spaced_x.begin() + x_rows[t] * G * H);
  }
  Barrier barrier;
  const auto worker = [&](int i, bool from_last, int index, int count) {
    if (from_last) i = chunks - 1 - i;
    const RowGroups of_chunk{groups[i].data(), s.groups};
    return Worker{index, count, s.split_rows ? of_chunk : RowGroups{}, s.alternate, &barrier};
  };
  const auto pointer = [](auto& v) { return v.empty() ? nullptr : v.data(); };
  for (int i = 0; i < chunks; ++i) {
    const Steps st = steps(i, s.reverse);
    const int64_t row = s.offsets[st.begin];
    const ForwardArgs<T> args = {st,
                                 H,
                                 K,
                                 s.spaced ? spaced_x.data() : x.data() + row * G * H,
                                 G * H,
                                 s.spaced ? &x_rows[st.begin] : nullptr,
                                 pointer(product),
                                 bias.data(),
                                 s.plain_w_hh ? w_hh.data() : packed.data(),
                                 pointer(packed_hr),
                                 h_0.data(),
                                 output.data(),
                                 K,
                                 pointer(c),
                                 s.saved ? gates.data() + row * s.saved * H : nullptr,
                                 lstm ? cells.data() + row * H : nullptr,
                                 pointer(hidden),
                                 nullptr,
                                 s.plain_w_hh,
                                 s.from_zero};
    parallel(s.threads, [&](int index, int count) {
      if (i == 0) {
        kernels.pack_gates(w_hh.data(), K, G, H, K, packed.data(), index, count);
        if (s.projection)
          kernels.pack_gates(w_hr.data(), H, 1, K, H, packed_hr.data(), index, count);
        barrier.wait(index, count);
      }
      kernels.forward[cell](args, worker(i, s.reverse, index, count));
    });
  }

  std::vector<T> packed_rows(kernels.packed_rows_size(G * H, K)), packed_hr_rows,
      grad_state(as<T>(in.grad_c_n)), all_grad_gates, grad_gates, next(B * width), grad_h,
      hidden_rows, all_hidden, step_h(R * K), step_c(lstm ? R * H : 0);
  if (s.cell == Cell::Gru) grad_state.assign(B * H, T(0));
  if (s.projection) packed_hr_rows.resize(kernels.packed_rows_size(K, H));
  all_grad_gates.resize(R * width);
  all_hidden.resize(s.projection ? R * H : 0);
  for (int i = 0; i < chunks; ++i) {
    const Steps st = steps(i, !s.reverse);
    const int64_t row = s.offsets[st.begin], rows = s.offsets[st.end] - row;
    grad_gates.assign(rows * width, T(0));
    if (s.projection) grad_h.assign(rows * K, T(0)), hidden_rows.assign(rows * H, T(0));
    const BackwardArgs<T> args = {st,
                                  H,
                                  K,
                                  {grad_output.data(), -1, K},
                                  output.data(),
                                  K,
                                  grad_h_n.data(),
                                  s.saved ? gates.data() + row * s.saved * H : nullptr,
                                  pointer(cells),
                                  h_0.data(),
                                  pointer(c_0),
                                  packed_rows.data(),
                                  pointer(packed_hr_rows),
                                  pointer(grad_state),
                                  grad_gates.data(),
                                  next.data(),
                                  pointer(grad_h),
                                  pointer(hidden_rows),
                                  step_h.data(),
                                  pointer(step_c)};
    parallel(s.threads, [&](int index, int count) {
      if (i == 0) {
        kernels.pack_rows(w_hh.data(), K, G * H, s.rotation * H, K, packed_rows.data(), index,
                          count);
        if (s.projection) {
          kernels.pack_rows(w_hr.data(), H, K, 0, H, packed_hr_rows.data(), index, count);
        }
        barrier.wait(index, count);
      }
      kernels.backward[cell](args, worker(i, !s.reverse, index, count));
    });
    std::copy(grad_gates.begin(), grad_gates.end(), all_grad_gates.begin() + row * width);
    std::copy(hidden_rows.begin(), hidden_rows.end(), all_hidden.begin() + row * H);
    const int64_t last = s.reverse ? st.end - 1 : st.begin;
    const auto from = grad_gates.begin() + (s.offsets[last] - row) * width;
    std::copy(from, from + (s.offsets[last + 1] - s.offsets[last]) * width, next.begin());
  }
  // Gates again, from x and from a product whose values do not matter: x's own.
  std::vector<T> activated(s.saved ? R * s.saved * H : 0);
  parallel(s.threads, [&](int index, int count) {
    kernels.activate[cell]({H, R, x.data(), x.data(), bias.data(), pointer(activated)},
                           worker(0, false, index, count));
  });
  return {
      to_doubles(output),         to_doubles(c),          to_doubles(gates),  to_doubles(cells),
      to_doubles(all_grad_gates), to_doubles(grad_state), to_doubles(step_h), to_doubles(step_c),
      to_doubles(all_hidden),     to_doubles(activated)};
}

int failures = 0;

void compare(const char* name, const Shape& s, int bits, const Doubles& got, const Doubles& exact,
             double allowed) {
  const Error error(got, exact);
  if (error.within(allowed)) return;
  ++failures;
  std::printf(
      "FAIL f%d %s: relative error %.3g (allowed %.3g); cell %d T %ld B %ld H %ld K %ld "
      "projection %d reverse %d ragged %d product %d plain %d rows %d of_all %d spaced %d "
      "alternate %d from_zero %d threads %d groups %d chunk %ld\n",
      bits, name, error.relative(), allowed, static_cast<int>(s.cell), long(s.T), long(s.B),
      long(s.H), long(s.K), s.projection, s.reverse, s.ragged, s.ready_product, s.plain_w_hh,
      s.split_rows, s.of_all, s.spaced, s.alternate, s.from_zero, s.threads, s.groups,
      long(s.chunk_rows));
}

void compare(const Shape& s, int bits, const Outputs& got, const Outputs& exact, double allowed) {
  compare("output", s, bits, got.output, exact.output, allowed);
  compare("c_n", s, bits, got.c_n, exact.c_n, allowed);
  compare("gates", s, bits, got.gates, exact.gates, allowed);
  compare("cells", s, bits, got.cells, exact.cells, allowed);
  compare("grad_gates", s, bits, got.grad_gates, exact.grad_gates, allowed);
  compare("grad_state", s, bits, got.grad_state, exact.grad_state, allowed);
  compare("step_grad_h", s, bits, got.step_grad_h, exact.step_grad_h, allowed);
  compare("step_grad_c", s, bits, got.step_grad_c, exact.step_grad_c, allowed);
  compare("hidden", s, bits, got.hidden, exact.hidden, allowed);
  compare("activated", s, bits, got.activated, exact.activated, allowed);
}

}  // namespace

int main(int argc, char** argv) {
  const int layers = count_argument(argc, argv, 400);
  Random random;
  const KernelTable& level = SEQKERN_CAPABILITY::table();
  const KernelTable& plain = DEFAULT::table();
  const int64_t lanes = level.vector_bytes / 4;
  const int64_t sizes[] = {1, 3, 7, lanes - 1, lanes, lanes + 1, 2 * lanes + 3, 4 * lanes + 5};
  for (int i = 0; i < layers; ++i) {
    Shape s{};
    s.cell = static_cast<Cell>(i % kNumCells);
    s.T = random.pick(1, 7), s.B = random.pick(1, 20), s.H = sizes[random.pick(0, 7)];
    s.projection = s.cell == Cell::Lstm && s.H > 1 && random.pick(0, 2) == 0;
    s.K = s.projection ? random.pick(1, s.H - 1) : s.H;
    s.reverse = random.pick(0, 1), s.ragged = random.pick(0, 1), s.split_rows = random.pick(0, 1);
    s.of_all = random.pick(0, 1), s.spaced = random.pick(0, 1), s.alternate = random.pick(0, 1);
    s.from_zero = random.pick(0, 3) == 0;
    s.ready_product = s.T == 1 && random.pick(0, 1), s.plain_w_hh = random.pick(0, 1);
    s.threads = static_cast<int>(random.pick(1, 3));
    s.groups = static_cast<int>(random.pick(1, 4));
    s.chunk_rows = random.pick(1, 60);
    if (s.cell == Cell::Lstm) take<Lstm>(s);
    if (s.cell == Cell::Gru) take<Gru>(s);
    if (s.cell == Cell::RnnTanh) take<RnnTanh>(s);
    if (s.cell == Cell::RnnRelu) take<RnnRelu>(s);
    s.offsets = {0};
    for (int64_t t = 0, rows = s.B; t < s.T; ++t) {
      if (s.ragged && t > 0) rows = random.pick(1, rows);
      s.offsets.push_back(s.offsets.back() + rows);
    }
    const int64_t R = s.offsets.back(), G = s.gates;
    const double weight = 1 / std::sqrt(double(s.K) + 1);
    Inputs in{random.values(R * G * s.H, 1),
              random.values((G + 1) * s.H, 1),
              random.values(G * s.H * s.K, weight),
              s.projection ? random.values(s.K * s.H, 1 / std::sqrt(double(s.H))) : Doubles(),
              s.from_zero ? Doubles(s.B * s.K) : random.values(s.B * s.K, 1),
              {},
              random.values(R * s.K, 1),
              random.values(s.B * s.K, 1),
              {}};
    if (s.cell == Cell::Lstm)
      in.c_0 = random.values(s.B * s.H, 1), in.grad_c_n = random.values(s.B * s.H, 1);
    Shape one = s;
    one.threads = 1;
    one.from_zero = false;
    one.chunk_rows = R;
    const Outputs exact = run(plain.f64, one, in);
    compare(s, 64, run(level.f64, s, in), exact, 1e-13);
    compare(s, 32, run(level.f32, s, in), exact, 1e-5);
  }
  std::printf("test_kernels: %d layers, vectors of %d bytes, %d failures\n", layers,
              level.vector_bytes, failures);
  return failures != 0;
}
