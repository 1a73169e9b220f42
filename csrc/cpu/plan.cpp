#include "cpu/plan.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "cpu/capability.h"
#include "cpu/parallel.h"

namespace seqkern::cpu {

namespace {

// Flops of a step that take as long as one more thread makes the barrier after it.
constexpr int64_t kBarrierFlops = 4096;

// Second-level caches from which weights are read fast.
constexpr int64_t kLargeCache = 2 << 20, kMediumCache = 1 << 20;

// Recurrent weights of no more bytes than this cost less to read again, from the second-level
// cache, for the rows of every thread, than what a split of the units moves between the cores.
int64_t rows_bytes(int64_t cache_bytes) {
  return cache_bytes >= kLargeCache    ? cache_bytes / 2
         : cache_bytes >= kMediumCache ? cache_bytes / 4
                                       : 64 * 1024;
}

// Bytes of weights that are worth a core of their own: about 5 us, as two processes whose threads
// wait for each other at every step of less stand still whenever they have to share the cores.
constexpr int64_t kStepBytes = 512 * 1024;

// With more bytes of weights than this to a core, two directions at once would want twice as much
// of the third-level cache.
constexpr int64_t kTurnBytes = 3 << 20;

// Flops that a core does in the time that it takes to start another.
constexpr int64_t kStartFlops = 1 << 20;

// What a chunk's activations may take so that they are still in cache when its steps read them.
constexpr int64_t kChunkBytes = 1 << 20;

// Rows of a step that are a thread's at least where rows are split: fewer do not fill a tile.
constexpr int64_t kLeastRows = 4;

// Reading the weights takes as long as multiplying so many rows, and so does a barrier.
constexpr int64_t kPanelRows = 4, kBarrierRows = 1;

// By how much the busiest of m threads exceeds the mean when n things are dealt to them.
double imbalance(int64_t n, int64_t m) { return double((n + m - 1) / m * m) / double(n); }

std::atomic<bool> pass_flops_ignored{false};

int flops_threads(int64_t flops, int available_threads) {
  return int(std::clamp<int64_t>(flops / kStartFlops, 1, available_threads));
}

}  // namespace

void ignore_pass_flops(bool ignore) { pass_flops_ignored = ignore; }

Plan make_plan(const Problem& p, int available_threads) {
  Plan plan;
  if (!pass_flops_ignored) available_threads = flops_threads(p.pass_flops, available_threads);
  const int64_t step_flops = 2 * p.B * p.gates * p.H * p.K;
  const int64_t panels = (p.H + p.panel_units - 1) / p.panel_units;
  const int64_t weight_bytes = p.gates * p.H * p.K * p.element_size;
  int64_t teams = std::min<int64_t>(p.directions, available_threads);
  if (weight_bytes / (available_threads / teams) > kTurnBytes) teams = 1;
  const int64_t team = available_threads / teams;
  // n threads take flops / n and n barriers: least for the root.
  const int64_t fastest = int64_t(std::sqrt(double(step_flops) / kBarrierFlops));
  const int64_t useful = std::clamp<int64_t>(fastest, 1, team);
  // Splitting the units reads each weight once over the cores and so is the rule. The batch is
  // split, where there are rows enough for a tile each, if the weights are few or there are too few
  // panels for the threads.
  const bool shared = panels_shared_by_rows(panels, p.B, useful) > 0;
  const int64_t by_units = shared ? useful : std::min(useful, panels);
  const double units_imbalance = shared && panels > useful ? 1 : imbalance(panels, useful),
               rows_over_units = imbalance(p.B, useful) / units_imbalance;
  const bool few_weights = weight_bytes <= rows_bytes(p.cache_bytes);
  plan.split_rows =
      useful > 1 && p.B >= kLeastRows * useful && rows_over_units < (few_weights ? 1.2 : 1 / 1.2);
  const int64_t each = plan.split_rows ? useful : by_units;
  plan.teams = int(teams);
  plan.threads = int(each * teams);
  const int64_t read = plan.split_rows ? weight_bytes : weight_bytes / std::max<int64_t>(each, 1);
  plan.alternate = alternates(read, p.cache_bytes);
  plan.chunk_rows = std::max(kChunkBytes / std::max<int64_t>(p.gates * p.H * p.element_size, 1),
                             p.min_chunk_rows);
  return plan;
}

int step_threads(int64_t B, int64_t weight_bytes, int available_threads) {
  // The weights are read once for up to two rows; with more the arithmetic takes longer.
  const int64_t bytes = weight_bytes * ((B + 1) / 2);
  return int(std::clamp<int64_t>(bytes / kStepBytes, 1, available_threads));
}

// A sweep over more than the cache holds leaves nothing in it of what the next one begins with.
// What else a step reads and writes wants room there too: more than a quarter of a large cache,
// half of a medium one.
bool alternates(int64_t bytes, int64_t cache_bytes) {
  if (cache_bytes < kMediumCache) return false;
  return cache_bytes >= kLargeCache ? bytes > cache_bytes / 4 * 3 : bytes >= cache_bytes / 2;
}

int product_threads(int64_t M, int64_t N, int64_t K, int available_threads) {
  return flops_threads(2 * M * N * K, available_threads);
}

bool slow_pairs_pay(int64_t B, int64_t R, int64_t weights) {
  // Half the bytes: of weights from the third-level cache up to 4 rows wait longer than they are
  // multiplied; and of fewer products than these a copy of the weights takes longer.
  constexpr int64_t kFewRows = 4, kFewProducts = 32;
  return R <= kFewProducts || (B <= kFewRows && weights * int64_t(sizeof(float)) > kLargeCache);
}

std::vector<int64_t> chunk_steps(const std::vector<int64_t>& offsets, int64_t chunk_rows,
                                 int64_t bound) {
  const int64_t T = int64_t(offsets.size()) - 1;
  std::vector<int64_t> bounds{0};
  // Closes chunks of the steps [from, to) before a step that would make one too large, or, given a
  // number of chunks, that lies nearer to the next one of so many equal ones.
  const auto close = [&](int64_t from, int64_t to, int64_t chunks) {
    const int64_t rows = offsets[to] - offsets[from];
    int64_t count = 1;
    for (int64_t t = from + 1; t < to; ++t) {
      const int64_t twice_middle = offsets[t] + offsets[t + 1] - 2 * offsets[from];
      const bool full = offsets[t + 1] - offsets[bounds.back()] > chunk_rows,
                 even = count < chunks && chunks * twice_middle > 2 * count * rows;
      if (!full && !even) continue;
      bounds.push_back(t);
      ++count;
    }
    return count;
  };
  const auto close_evenly = [&](int64_t from, int64_t to) {
    const size_t before = bounds.size();
    const int64_t chunks = close(from, to, 0);
    bounds.resize(before);
    close(from, to, chunks);
    bounds.push_back(to);
  };
  if (bound > 0) close_evenly(0, bound);
  if (bound < T || T == 0) close_evenly(bound, T);
  return bounds;
}

GroupBounds row_groups(const std::vector<int64_t>& offsets, int64_t begin, int64_t end,
                       int64_t groups) {
  // Sequences that take part in as many of the steps, longest first.
  struct Alike {
    int64_t rows, steps;
  };
  std::vector<Alike> all;
  for (int64_t t = end - 1, longer = 0; t >= begin; --t) {
    const int64_t rows = offsets[t + 1] - offsets[t];
    if (rows > longer) all.push_back({rows - longer, t + 1 - begin});
    longer = rows;
  }
  if (all.empty()) return {std::vector<int64_t>(groups + 1, 0), 0};
  // Fills one group after the other, none above `most`. The first few rows take the time of the
  // longest one's panels.
  const auto fill = [&](int64_t most) {
    std::vector<int64_t> bounds{0};
    int64_t row = 0, load = 0;
    for (const Alike& a : all) {
      for (int64_t left = a.rows; left > 0;) {
        if (row == bounds.back()) load = kPanelRows * a.steps;
        const int64_t within = std::max<int64_t>(bounds.back() + kPanelRows - row, 0),
                      taken = std::min(left, within + (most - load) / a.steps);
        row += taken, left -= taken, load += std::max<int64_t>(taken - within, 0) * a.steps;
        if (left > 0) bounds.push_back(row);
      }
    }
    bounds.push_back(row);
    return bounds;
  };
  int64_t low = kPanelRows * all.front().steps, high = low;
  for (const Alike& a : all) high += a.rows * a.steps;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (int64_t(fill(middle).size()) - 1 <= groups) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  std::vector<int64_t> bounds = fill(low);
  bounds.resize(groups + 1, bounds.back());
  return {bounds, low};
}

int64_t grouped_steps(const std::vector<int64_t>& offsets, int64_t groups, bool of_all) {
  const int64_t T = int64_t(offsets.size()) - 1;
  int64_t enough = 0;
  while (enough < T && offsets[enough + 1] - offsets[enough] >= kLeastRows * groups) ++enough;
  if (enough == 0 || enough == T || !of_all) return enough;
  // The rest split by units, with a barrier a step.
  int64_t rest = 0;
  for (int64_t t = enough; t < T; ++t) {
    rest += std::max(offsets[t + 1] - offsets[t], kPanelRows) / groups + kBarrierRows;
  }
  return row_groups(offsets, 0, enough, groups).rows + rest < row_groups(offsets, 0, T, groups).rows
             ? enough
             : T;
}

}  // namespace seqkern::cpu
