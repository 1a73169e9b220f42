// Parallel regions and the barrier inside them.
#pragma once

#include <atomic>
#include <cstdint>

namespace seqkern::cpu {

// Each of a team's threads says that it has come in a cache line of its own, which the others read:
// a store, and one transfer between cores, where a common counter takes an atomic addition, which
// holds up everything that follows it, and a second transfer. Where there are many threads, and so
// many lines to read, it is a counter. It spins for a few microseconds, as steps are short, and
// then yields, so that with more threads than free cores it slows down instead of stalling.
class Barrier {
 public:
  // Returns once all threads [0, count) have called it: the same count each time, 1 excepted.
  void wait(int index, int count) {
    if (count > 1) wait_for(index, count, arrive(index, count));
  }

  // The same in two halves: what a thread does between them overlaps with the others' work before
  // they arrive.
  uint32_t arrive(int index, int count);
  void wait_for(int index, int count, uint32_t arrival);

 private:
  static constexpr int kFlags = 16;
  struct alignas(64) Line {
    std::atomic<uint32_t> count{0};
  };
  Line arrivals_[kFlags];      // of each thread
  Line arrived_, generation_;  // of more threads than that
};

// Calls body(context, index, count) on up to `threads` OpenMP threads; count is how many of these
// the region really got. The region has all of the runtime's threads, as PyTorch's have: GCC's
// runtime ends those that a smaller one leaves out, and starts them anew for the next one. Runs on
// the calling thread alone inside another parallel region and in a forked child, where the OpenMP
// runtime's threads are gone and waiting for them would hang.
void parallel(int threads, void (*body)(void* context, int index, int count), void* context);

template <typename F>
void parallel(int threads, F&& body) {
  parallel(
      threads,
      [](void* context, int index, int count) { (*static_cast<F*>(context))(index, count); },
      &body);
}

// How many of n panels, each to be multiplied with so many rows, `count` threads share by rows
// where they split the units: those that are left when all have as many whole ones, unless so few
// rows would be each one's that reading the panel (the time of three rows) takes longer.
[[gnu::always_inline]] inline int64_t panels_shared_by_rows(int64_t n, int64_t rows,
                                                            int64_t count) {
  const int64_t left = n % count;
  return left * rows + 3 * count <= count * rows ? left : 0;
}

// Whole sequences in groups, each a thread's for consecutive time steps: group g has those of a
// step's rows that lie in [bounds[g], bounds[g + 1]). Fewer threads than groups take several each.
struct RowGroups {
  const int64_t* bounds = nullptr;  // [count + 1], from 0 to the first step's rows; null: no groups
  int64_t count = 0;

  explicit operator bool() const { return bounds != nullptr; }
  [[gnu::always_inline]] int64_t begin(int64_t index, int64_t threads, int64_t rows) const {
    const int64_t bound = bounds[count * index / threads];
    return bound < rows ? bound : rows;
  }
};

// Whether this thread's regions are made by itself alone, as others want the cores (turns.h); for
// tests, whether all are.
bool crowded();
void want_turns(bool wanted);

// Whether this process was forked from one that had loaded seqkern.
bool forked();

}  // namespace seqkern::cpu
