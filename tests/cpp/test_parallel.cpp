// Regions and the barrier: a region inside another parallel region gets one thread, one of fewer
// threads leaves the others alive, threads beyond the number of cores meet at every barrier, and
// where they have a core together one thread does what all of them would. Exit status 1 where that
// is not so.
#include "cpu/parallel.h"

#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <set>
#include <vector>

#include "cpu/turns.h"

using namespace seqkern::cpu;

namespace {

int barrier_failures(const char* name) {
  int failures = 0;
  // Of few threads and of many, which it counts in different ways.
  for (const int threads : {2, 8, 20}) {
    constexpr int kRounds = 2000;
    std::vector<int> round(threads);
    std::atomic<int> early{0}, team{0};
    Barrier barrier;
    parallel(threads, [&](int index, int count) {
      team = count;
      for (int i = 1; i <= kRounds; ++i) {
        round[index] = i;
        if (i % 2 == 0) {
          barrier.wait(index, count);
        } else {
          const uint32_t arrival = barrier.arrive(index, count);
          barrier.wait_for(index, count, arrival);
        }
        for (int other = 0; other < count; ++other) early += round[other] != i;
        barrier.wait(index, count);
      }
    });
    if (team < 2 || early != 0) {
      ++failures;
      std::printf("FAIL %s: %d threads, %d passed before another came\n", name, team.load(),
                  early.load());
    }
  }
  return failures;
}

int turns_failures() {
  int failures = barrier_failures("turns at barriers");
  std::set<pid_t> ids;
  std::set<int> indices;
  int inner = 0;
  parallel(5, [&](int index, int count) {
    ids.insert(gettid());
    if (count == 5) indices.insert(index);
    parallel(3, [&](int, int count) { inner += count; });
  });
  if (ids != std::set<pid_t>{gettid()} || indices.size() != 5 || inner != 5) {
    ++failures;
    std::printf("FAIL turns: %zu threads for %zu of 5, regions within of %d instead of 1 each\n",
                ids.size(), indices.size(), inner);
  }
  return failures;
}

// Two threads that may use the cores of `cores` alone, until they are found crowded, or not.
bool become(bool crowd, const cpu_set_t& cores) {
  using Clock = std::chrono::steady_clock;
  const auto last = Clock::now() + std::chrono::seconds(20);
  while (crowded() != crowd && Clock::now() < last) {
    Barrier barrier;
    parallel(2, [&](int index, int count) {
      sched_setaffinity(0, sizeof cores, &cores);
      for (int i = 0; i < 20; ++i) {
        const auto end = Clock::now() + std::chrono::microseconds(200);
        while (Clock::now() < end) {
        }
        barrier.wait(index, count);
      }
    });
  }
  return crowded() == crowd;
}

int crowd_failures() {
  int failures = 0;
  cpu_set_t before, one;
  sched_getaffinity(0, sizeof before, &before);
  CPU_ZERO(&one);
  for (int i = 0; CPU_COUNT(&one) == 0; ++i) {
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  }
  if (!become(true, one)) {
    ++failures;
    std::printf("FAIL crowd: two threads with one core were not found to be crowded\n");
  }
  // Where there is but one core they stay so.
  sched_setaffinity(0, sizeof before, &before);
  if (CPU_COUNT(&before) > 1 && !become(false, before)) {
    ++failures;
    std::printf("FAIL crowd: two threads with cores of their own still take turns\n");
  }
  return failures;
}

}  // namespace

int main() {
  int failures = 0;
  std::atomic<int> outer{0}, inner{0}, widest{0};
  // An OpenMP region that is not ours, as a library that calls a layer from its own would have.
#pragma omp parallel num_threads(3)
  {
    ++outer;
    parallel(4, [&](int index, int count) {
      ++inner;
      if (index != 0 || count != 1) widest = count;
    });
  }
  if (outer < 2 || inner != outer || widest != 0) {
    ++failures;
    std::printf("FAIL nested: %d threads outside ran %d inside, widest %d\n", outer.load(),
                inner.load(), widest.load());
  }

  // Threads that end would have others in their place.
  omp_set_num_threads(6);
  const auto threads_of_a_region = [] {
    std::vector<pid_t> ids(6);
    parallel(6, [&](int index, int) { ids[index] = gettid(); });
    return std::set<pid_t>(ids.begin(), ids.end());
  };
  const std::set<pid_t> before = threads_of_a_region();
  std::atomic<int> members{0}, wrong{0};
  parallel(3, [&](int index, int count) {
    ++members;
    wrong += index >= 3 || count != 3;
  });
  if (before.size() != 6 || members != 3 || wrong != 0 || threads_of_a_region() != before) {
    ++failures;
    std::printf(
        "FAIL fewer: a region of %d instead of 3, %d wrong, or threads that are not those "
        "of the %zu before\n",
        members.load(), wrong.load(), before.size());
  }

  failures += barrier_failures("barrier");
  if (kTakesTurns) {
    want_turns(true);
    failures += turns_failures();
    want_turns(false);
    failures += crowd_failures();
  }
  std::printf("test_parallel: %d failures\n", failures);
  return failures != 0;
}
