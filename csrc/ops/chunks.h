// The chunks of whole steps in which a pass goes over a layer.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/plan.h"
#include "ops/layer.h"

namespace seqkern::ops {

struct Chunk {
  int64_t begin, end;  // steps
  int64_t row, rows;
};

class Chunks {
 public:
  Chunks(const Layer& layer, int64_t rows)
      : s_(layer), bounds_(cpu::chunk_steps(layer.offsets, rows)) {}

  int64_t size() const { return static_cast<int64_t>(bounds_.size()) - 1; }

  // The i-th chunk in the order in which a pass takes them, from the first steps or from the last.
  Chunk at(int64_t i, bool from_last) const {
    if (from_last) i = size() - 1 - i;
    const int64_t row = s_.offsets[bounds_[i]];
    return {bounds_[i], bounds_[i + 1], row, s_.offsets[bounds_[i + 1]] - row};
  }

  int64_t max_rows() const {
    int64_t most = 0;
    for (int64_t i = 0; i < size(); ++i) most = std::max(most, at(i, false).rows);
    return most;
  }

 private:
  const Layer& s_;
  std::vector<int64_t> bounds_;  // steps
};

}  // namespace seqkern::ops
