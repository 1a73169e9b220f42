// Initial states of zeros, which need no recurrent product.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/kernels.h"

namespace seqkern::ops {

// Whether all of a state is zero, as it is by default.
template <typename T>
bool is_zero(const T* state, int64_t n) {
  constexpr int64_t kAtOnce = 256;  // without a branch between them
  for (int64_t begin = 0; begin < n; begin += kAtOnce) {
    const int64_t end = std::min(n, begin + kAtOnce);
    bool other = false;
    for (int64_t i = begin; i < end; ++i) {
      if constexpr (std::is_same_v<T, cpu::Bf16>) {
        other |= (state[i].bits & 0x7fff) != 0;
      } else {
        other |= state[i] != 0;
      }
    }
    if (other) return false;
  }
  return true;
}

}  // namespace seqkern::ops
