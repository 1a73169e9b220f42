// Regions and the barrier: a region inside another parallel region gets one thread, and threads
// beyond the number of cores meet at every barrier. Exit status 1 where that is not so.
#include "cpu/parallel.h"

#include <omp.h>

#include <cstdio>
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

  // Of few threads and of many, which it counts in different ways.
  for (const int threads : {2, 8, 12}) {
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
