// The chunks of whole steps in which a pass goes over a layer.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/plan.h"
#include "ops/layer.h"

namespace seqkern::ops {

struct Chunk {
  int64_t index;       // by time
  int64_t begin, end;  // steps
  int64_t row, rows;
};

// Threads that split rows do so in groups of sequences: of each chunk, as suits it, where they wait
// for each other at its end anyway; or of all chunks, and then nobody waits. What belongs to a
// chunk is overwritten by the next one's: in packed rows by other groups; spaced, each step has B
// rows there, so that the groups stay apart.
enum class Groups { kOfChunk, kOfAll, kOfAllSpaced };

class Chunks {
 public:
  // With so many threads that split rows, or none that do.
  Chunks(const Layer& layer, int64_t rows, int64_t threads = 0, Groups groups = Groups::kOfChunk)
      : s_(layer), threads_(threads), of_all_(groups != Groups::kOfChunk || !layer.ragged) {
    if (threads > 0) grouped_ = cpu::grouped_steps(s_.offsets, threads, of_all_);
    first_rows_ = s_.offsets;
    if (groups == Groups::kOfAllSpaced) {
      for (int64_t t = 0; t < s_.T; ++t) {
        first_rows_[t + 1] = first_rows_[t] + (t < grouped_ ? s_.B : s_.rows(t));
      }
    }
    bounds_ = cpu::chunk_steps(first_rows_, rows, grouped_);
    const auto add_groups = [&](int64_t begin, int64_t end) {
      groups_.push_back(cpu::row_groups(s_.offsets, begin, end, threads).bounds);
    };
    if (of_all_ && grouped_ > 0) add_groups(0, grouped_);
    for (int64_t i = 0; !of_all_ && bounds_[i] < grouped_; ++i) {
      add_groups(bounds_[i], bounds_[i + 1]);
    }
    for (int64_t i = 0; i < size(); ++i) {
      const int64_t first = first_rows_[bounds_[i]];
      max_rows_ = std::max(max_rows_, first_rows_[bounds_[i + 1]] - first);
      for (int64_t t = bounds_[i]; t < bounds_[i + 1]; ++t) first_rows_[t] -= first;
    }
  }

  int64_t size() const { return static_cast<int64_t>(bounds_.size()) - 1; }

  // The i-th chunk in the order in which a pass takes them, from the first steps or from the last.
  Chunk at(int64_t i, bool from_last) const {
    if (from_last) i = size() - 1 - i;
    const int64_t row = s_.offsets[bounds_[i]];
    return {i, bounds_[i], bounds_[i + 1], row, s_.offsets[bounds_[i + 1]] - row};
  }

  // The groups in a chunk, or none.
  cpu::RowGroups groups(const Chunk& chunk) const {
    if (chunk.begin >= grouped_) return {};
    return {groups_[of_all_ ? 0 : chunk.index].data(), threads_};
  }

  // Where the rows of each step of a chunk begin among its own.
  const int64_t* first_rows(const Chunk& chunk) const { return &first_rows_[chunk.begin]; }

  // Of any chunk.
  int64_t max_rows() const { return max_rows_; }

 private:
  const Layer& s_;
  int64_t threads_;
  bool of_all_;
  int64_t grouped_ = 0;          // steps that are
  std::vector<int64_t> bounds_;  // steps
  std::vector<std::vector<int64_t>> groups_;
  std::vector<int64_t> first_rows_;
  int64_t max_rows_ = 0;
};

}  // namespace seqkern::ops
