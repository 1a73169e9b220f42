#include "cuda/plan.h"

#include <algorithm>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace seqkern::cuda {

namespace {

// What a chunk's input product may take of the device's memory.
constexpr int64_t kChunkBytes = int64_t{128} << 20;

struct Widths {
  int gates, grad_gates;
};
constexpr Widths kWidths[kNumCells] = {{Lstm::kGates, Lstm::kGradGates},
                                       {Gru::kGates, Gru::kGradGates},
                                       {RnnTanh::kGates, RnnTanh::kGradGates},
                                       {RnnRelu::kGates, RnnRelu::kGradGates}};

int math_bytes(Type type) { return type == Type::F64 ? 8 : 4; }

}  // namespace

bool supports(Tier tier, const Problem&, const DeviceProperties&) { return tier == Tier::Stepwise; }

Plan make_plan(const Problem& p, const DeviceProperties&) {
  Plan plan{};
  plan.tier = Tier::Stepwise;
  const int64_t row_bytes =
      kWidths[int(p.cell)].grad_gates * p.H * math_bytes(p.type) * p.directions;
  plan.chunk_rows = std::max(kChunkBytes / std::max<int64_t>(row_bytes, 1), p.B);
  return plan;
}

}  // namespace seqkern::cuda
