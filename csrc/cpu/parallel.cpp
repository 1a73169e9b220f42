#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

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

void Barrier::wait(int count) {
  if (count == 1) return;
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  // About 10 us of spinning: longer than a balanced step's skew, shorter than a time slice.
  for (int spins = 0; generation_.load(std::memory_order_acquire) == generation;) {
    if (spins < 400) {
      pause();
      ++spins;
    } else {
      sched_yield();
    }
  }
}

bool forked() { return is_forked.load(std::memory_order_relaxed); }

void parallel(int threads, void (*body)(void*, int, int), void* context) {
  if (threads <= 1 || omp_in_parallel() || forked()) {
    body(context, 0, 1);
    return;
  }
#pragma omp parallel num_threads(threads)
  body(context, omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace seqkern::cpu
