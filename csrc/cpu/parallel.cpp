#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>

namespace seqkern::cpu {

namespace {

std::atomic<bool> is_forked{false};

const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked.store(true); });

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

uint32_t Barrier::arrive(int index, int count) {
  if (count <= kFlags) {
    auto& own = arrivals_[index].count;
    const uint32_t arrival = own.load(std::memory_order_relaxed) + 1;
    own.store(arrival, std::memory_order_release);
    return arrival;
  }
  // Read before arriving: it cannot change until this thread, too, has arrived.
  const uint32_t arrival = generation_.count.load(std::memory_order_relaxed) + 1;
  if (arrived_.count.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(count)) {
    arrived_.count.store(0, std::memory_order_relaxed);
    generation_.count.store(arrival, std::memory_order_release);
  }
  return arrival;
}

void Barrier::wait_for(int index, int count, uint32_t arrival) {
  // About 10 us of spinning: longer than a balanced step's skew, shorter than a time slice.
  int spins = 0;
  const auto spin_until = [&](const std::atomic<uint32_t>& reached) {
    // A thread may have come to the next barrier already.
    while (int32_t(reached.load(std::memory_order_acquire) - arrival) < 0) {
      if (spins < 400) {
        pause();
        ++spins;
      } else {
        sched_yield();
      }
    }
  };
  if (count > kFlags) {
    spin_until(generation_.count);
    return;
  }
  for (int other = 0; other < count; ++other) {
    if (other != index) spin_until(arrivals_[other].count);
  }
}

bool forked() { return is_forked.load(std::memory_order_relaxed); }

void parallel(int threads, void (*body)(void*, int, int), void* context) {
  if (threads <= 1 || omp_in_parallel() || forked()) {
    body(context, 0, 1);
    return;
  }
  const int all = std::max(threads, omp_get_max_threads());
#pragma omp parallel num_threads(all)
  {
    const int index = omp_get_thread_num(), count = std::min(threads, omp_get_num_threads());
    if (index < count) body(context, index, count);
  }
}

}  // namespace seqkern::cpu
