#include "cpu/parallel.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>

#include "cpu/turns.h"

namespace seqkern::cpu {

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::duration;

std::atomic<bool> is_forked{false}, turns_wanted{false};

// What this thread had the processor for.
Time used() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
}

// What a thread waits at barriers: by the clock, from when it has spun for long enough, or, in a
// region that is measured, what it has the processor for meanwhile.
struct Waits {
  bool measured = false;
  Time waited{};

  Time now() const { return measured ? used() : Clock::now().time_since_epoch(); }
};
thread_local Waits waits;

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
  bool here() const { return kTakesTurns && (turns_wanted || Clock::now() < until_); }

  // Whether the region that begins is to be measured, which takes a little time: now and then, and
  // soon after one that was slow.
  bool measures(Clock::time_point begin) {
    return begin < suspected_until_ || ++regions_ % kUnmeasured == 0;
  }

  // After a region, with the work in all its threads: by the clock, which goes on while a thread is
  // kept from its work, or as measured. One or two that were slow may have had bad luck.
  void note(Clock::time_point begin, bool measured, int threads, Time worked) {
    const Clock::time_point end = Clock::now();
    const Time took = end - begin;
    if (took < kSlow) return;
    if (worked > (measured ? took + took / 8 : took * threads * 5 / 8)) {
      slow_ = 0;
      suspected_until_ = {};
      return;
    }
    slow_ = begin < suspected_until_ ? slow_ + 1 : 1;
    if (measured && slow_ >= kFew) until_ = end + std::min<Time>(kTries * took, kLongest);
    suspected_until_ = std::max(end, until_) + kSoon;
  }

 private:
  static constexpr Time kSlow = std::chrono::microseconds(500),
                        kSoon = std::chrono::milliseconds(10), kLongest = std::chrono::seconds(1);
  static constexpr int kTries = 32,  // of turns, in times that a slow region took
      kFew = 3;                      // slow regions that make a crowd
  static constexpr unsigned kUnmeasured = 128;

  int slow_ = 0;  // regions, one soon after the other
  unsigned regions_ = 0;
  Clock::time_point suspected_until_{}, until_{};
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
    Time begin = waits.measured ? waits.now() : Time{};
    for (; spins < 400 && !done(); ++spins) pause();
    if (!done()) {
      if (!waits.measured) begin = waits.now();
      while (!done()) sched_yield();
    } else if (!waits.measured) {
      return;
    }
    waits.waited += waits.now() - begin;
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
  const bool measured = crowd.measures(begin);
  int members = 1;
#pragma omp parallel num_threads(all)
  {
    const int index = omp_get_thread_num(), count = std::min(threads, omp_get_num_threads());
    if (index == 0) members = count;
    if (index < count) {
      waits = {measured};
      const Time mine = waits.now();
      body(context, index, count);
      worked += (waits.now() - mine - waits.waited).count();
    }
  }
  // Turns would be those of all threads that were asked for.
  if (members == threads) crowd.note(begin, measured, threads, Time(worked));
}

}  // namespace seqkern::cpu
