#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>

#include "cpu/turns.h"

namespace seqkern::cpu {

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::duration;

std::atomic<bool> is_forked{false}, turns_wanted{false};

// What this thread has waited at barriers for longer than they spin.
thread_local Time waited{};

const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked.store(true); });

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether the threads that call for regions here find the cores taken. Where they do, each region
// waits for a thread that does not run while another one spins or works in its place, for whole
// time slices of the system. One thread then does as much or more, and leaves the other cores to
// those that want them: it takes turns for some time, until a region tries again.
class Crowd {
 public:
  bool here() const { return turns_wanted || Clock::now() < until_; }

  // After a region of so much time, and of so much work in all its threads.
  void note(Time took, Time worked) {
    const bool slow = took > kSlow && worked < took + took / 8;
    // Something else may have had to run just once.
    if (slow && suspected_) until_ = Clock::now() + std::min<Time>(kTries * took, kLongest);
    suspected_ = slow;
  }

 private:
  static constexpr Time kSlow = std::chrono::microseconds(500), kLongest = std::chrono::seconds(1);
  static constexpr int kTries = 32;  // one in so much time is a region of threads

  bool suspected_ = false;
  Clock::time_point until_{};
};

thread_local Crowd crowd;

}  // namespace

bool crowded() { return crowd.here(); }

void want_turns(bool wanted) { turns_wanted = wanted; }

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
    const auto done = [&] {
      return int32_t(reached.load(std::memory_order_acquire) - arrival) >= 0;
    };
    if (done()) return;
    if (taking_turns()) {
      while (!done()) pass_turn();
      return;
    }
    for (; spins < 400; ++spins) {
      pause();
      if (done()) return;
    }
    const Clock::time_point begin = Clock::now();
    while (!done()) sched_yield();
    waited += Clock::now() - begin;
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
  if (threads <= 1 || omp_in_parallel() || forked() || taking_turns()) {
    body(context, 0, 1);
    return;
  }
  if (crowd.here() && take_turns(threads, body, context)) return;
  const int all = std::max(threads, omp_get_max_threads());
  std::atomic<Time::rep> worked{0};
  const Clock::time_point begin = Clock::now();
#pragma omp parallel num_threads(all)
  {
    const int index = omp_get_thread_num(), count = std::min(threads, omp_get_num_threads());
    if (index < count) {
      const Clock::time_point mine = Clock::now();
      const Time before = waited;
      body(context, index, count);
      worked += (Clock::now() - mine - (waited - before)).count();
    }
  }
  crowd.note(Clock::now() - begin, Time(worked));
}

}  // namespace seqkern::cpu
