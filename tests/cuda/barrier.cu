// Compiled only (`make cells-cuda`), with either barrier: no kernel needs one over the grid at
// present.
#include "cuda/simt.h"

extern "C" __global__ void seqkern_barrier(uint32_t* counter, uint32_t* sums) {
  seqkern::cuda::GridBarrier barrier(counter);
  sums[blockIdx.x] = blockIdx.x;
  barrier.wait();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    for (unsigned i = 1; i < gridDim.x; ++i) sums[0] += sums[i];
  }
}
