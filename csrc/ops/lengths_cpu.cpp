#include "ops/lengths_cpu.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cpu/parallel.h"
#include "ops/memory_cpu.h"

namespace seqkern::ops {

namespace {

using at::Tensor;

// Bytes that are worth a thread of their own.
constexpr int64_t kGrain = 64 << 10;

void check_index(const char* name, const Tensor& index) {
  TORCH_CHECK(index.dim() == 1 && index.scalar_type() == at::kLong && index.is_cpu() &&
                  index.is_contiguous(),
              "seqkern: ", name, " must be a contiguous 1-D int64 CPU tensor, got ", index.sizes(),
              " ", index.scalar_type(), " on ", index.device());
}

void check_rows(const char* name, const Tensor& rows) {
  TORCH_CHECK(rows.dim() == 2 && rows.is_cpu(), "seqkern: ", name,
              " must be a 2-D CPU tensor, got ", rows.sizes(), " on ", rows.device());
}

// f(i) for i in [0, n) by as many threads as rows of so many bytes are worth.
template <typename F>
void for_rows(int64_t n, int64_t bytes, F&& f) {
  const auto threads = std::clamp<int64_t>(n * bytes / kGrain, 1, at::get_num_threads());
  cpu::parallel(static_cast<int>(threads), [&](int index, int count) {
    for (int64_t i = n * index / count; i < n * (index + 1) / count; ++i) f(i);
  });
}

// Fetches a row to be written: a processor that foresees the next lines of a row does not foresee
// the next row.
void fetch_to_write(const char* row, int64_t bytes) {
  constexpr int64_t kMost = 1024;
  for (int64_t i = 0; i < std::min(bytes, kMost); i += 64) __builtin_prefetch(row + i, 1);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layout(const Tensor& lengths, int64_t steps,
                                                          bool batch_first) {
  check_index("lengths", lengths);
  const int64_t B = lengths.numel(), T = steps;
  const int64_t* const length = lengths.const_data_ptr<int64_t>();
  int64_t rows = 0;
  for (int64_t b = 0; b < B; ++b) {
    TORCH_CHECK_VALUE(0 <= length[b] && length[b] <= T, "lengths must lie between 0 and T = ", T,
                      ", got ", length[b]);
    rows += length[b];
  }
  const auto empty = [&](int64_t n) { return empty_cpu({n}, lengths.options()); };
  const Tensor batch_sizes = empty(T + 1), source = empty(rows), padding = empty(T * B - rows),
               order = empty(B), place = empty(B);
  int64_t* const ordered = order.mutable_data_ptr<int64_t>();
  std::iota(ordered, ordered + B, 0);
  std::stable_sort(ordered, ordered + B,
                   [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  int64_t* const places = place.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < B; ++i) places[ordered[i]] = i;
  int64_t *taken = source.mutable_data_ptr<int64_t>(), *left = padding.mutable_data_ptr<int64_t>(),
          *sizes = batch_sizes.mutable_data_ptr<int64_t>();
  int64_t active = B;
  for (int64_t t = 0; t <= T; ++t) {
    while (active > 0 && length[ordered[active - 1]] <= t) --active;
    sizes[t] = active;
    if (t == T) break;
    for (int64_t i = 0; i < B; ++i) {
      const int64_t row = batch_first ? ordered[i] * T + t : t * B + ordered[i];
      *(i < active ? taken : left)++ = row;
    }
  }
  return {batch_sizes, source, padding, order, place};
}

Tensor gather_rows(const Tensor& padded, const Tensor& source) {
  check_rows("padded", padded);
  check_index("source", source);
  const Tensor from = padded.contiguous();
  const int64_t R = source.numel(), N = from.size(0);
  const int64_t bytes = from.size(1) * static_cast<int64_t>(from.element_size());
  Tensor rows = empty_cpu({R, from.size(1)}, from.options());
  const int64_t* const index = source.const_data_ptr<int64_t>();
  TORCH_CHECK(std::all_of(index, index + R, [&](int64_t i) { return 0 <= i && i < N; }),
              "seqkern: source must lie in the ", N, " rows of padded");
  const char* const in = static_cast<const char*>(from.const_data_ptr());
  char* const out = static_cast<char*>(rows.mutable_data_ptr());
  for_rows(R, bytes,
           [&](int64_t i) { std::memcpy(out + i * bytes, in + index[i] * bytes, bytes); });
  return rows;
}

Tensor scatter_rows(const Tensor& rows, const Tensor& source, const Tensor& padding) {
  check_rows("rows", rows);
  check_index("source", source);
  check_index("padding", padding);
  const Tensor from = rows.contiguous();
  const int64_t R = source.numel(), P = padding.numel();
  TORCH_CHECK(from.size(0) == R, "seqkern: rows must have the ", R, " rows of source, got ",
              from.sizes());
  const int64_t bytes = from.size(1) * static_cast<int64_t>(from.element_size());
  Tensor padded = empty_cpu({R + P, from.size(1)}, from.options());
  const int64_t *const to = source.const_data_ptr<int64_t>(), *const zero =
                                                                  padding.const_data_ptr<int64_t>();
  const auto inside = [&](int64_t i) { return 0 <= i && i < R + P; };
  TORCH_CHECK(std::all_of(to, to + R, inside) && std::all_of(zero, zero + P, inside),
              "seqkern: source and padding must lie in their ", R + P, " rows");
  const char* const in = static_cast<const char*>(from.const_data_ptr());
  char* const out = static_cast<char*>(padded.mutable_data_ptr());
  constexpr int64_t kAhead = 8;
  const auto put = [&](const int64_t* places, int64_t begin, int64_t end, auto&& fill) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) fetch_to_write(out + places[i + kAhead] * bytes, bytes);
      fill(out + places[i] * bytes, i);
    }
  };
  const auto threads = std::clamp<int64_t>((R + P) * bytes / kGrain, 1, at::get_num_threads());
  cpu::parallel(static_cast<int>(threads), [&](int index, int count) {
    put(to, R * index / count, R * (index + 1) / count,
        [&](char* row, int64_t i) { std::memcpy(row, in + i * bytes, bytes); });
    put(zero, P * index / count, P * (index + 1) / count,
        [&](char* row, int64_t) { std::memset(row, 0, bytes); });
  });
  return padded;
}

}  // namespace seqkern::ops
