// Regions and the barrier: a region inside another parallel region gets one thread, one of fewer
// threads leaves the others alive, and threads beyond the number of cores meet at every barrier.
// Exit status 1 where that is not so.
#include "cpu/parallel.h"

#include <omp.h>
#include <unistd.h>

#include <cstdio>
#include <set>
#include <vector>

using namespace seqkern::cpu;

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
      std::printf("FAIL barrier: %d threads, %d passed before another came\n", team.load(),
                  early.load());
    }
  }
  std::printf("test_parallel: %d failures\n", failures);
  return failures != 0;
}
