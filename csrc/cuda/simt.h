// The one header that a kernel file includes instead of CUDA's own. nvcc compiles it to CUDA; with
// SEQKERN_CUDA_HOST a C++ compiler compiles the same source for tests/cuda_host, where each CUDA
// thread is a fiber.
//
// Written as in CUDA: __global__, __device__, __host__, __forceinline__, __launch_bounds__,
// threadIdx, blockIdx, blockDim, gridDim, dim3, float2, float4, uint2, uint4, int4 and their
// make_*, __syncthreads, __syncthreads_or, __syncwarp, __shfl_sync, __shfl_xor_sync,
// __shfl_down_sync, __shfl_up_sync, __ballot_sync, __any_sync, __all_sync, atomicAdd (int,
// unsigned, float, double), __ldg, __float_as_uint, __uint_as_float, __fdividef and <cmath>'s
// functions.
//
// Written with the names below, because the host needs to see them:
//   SEQKERN_SHARED(float, tile, [8][32]);     a __shared__ array, or a scalar without the third
//   SEQKERN_DYNAMIC_SHARED(float, memory);    float* memory: the launch's dynamic shared memory
//   launch(kernel<T>, grid, block, shared_bytes, stream, arguments...)
//   launch_cooperative(...)                   same; all blocks are resident, or it throws
//   allow_shared_memory(kernel, bytes)        before a launch with more than 48 KB
//   resident_blocks(kernel, threads, bytes)   blocks per multiprocessor, asked of the runtime
//   spin_until([&] { return load_acquire(flag) >= t; })   every wait for another thread
//   load_acquire, store_release, add_release        flags and counters in global memory
//   GridBarrier                               all threads of a cooperative launch
//   cp_async<16>(shared, global), cp_async_commit(), cp_async_wait<n>()
//   mma_m16n8k16<bf16>(d, a, b), ldmatrix_x4, ldmatrix_x2[_trans]
//   f16, bf16, to_float(x), from_float<T>(x), pack(low, high)
//
// Rules that the host enforces or relies on:
//   - no __shared__, <<<>>>, inline PTX, volatile spin loop, __constant__ or static local in
//     kernels; no __threadfence: add_release and store_release publish, which order what their
//     thread (and, after __syncthreads, its block) wrote before;
//   - shuffles, votes and mma order no memory; __syncwarp and __syncthreads do;
//   - all threads of a block meet at the same __syncthreads, all lanes of a mask at the same
//     shuffle; threads may have returned before a __syncthreads, lanes not before a shuffle;
//   - waits for another block only in a cooperative launch;
//   - what is shared between threads without a barrier goes through load_acquire and store_release.
//     A plain access that races with another is an error under ThreadSanitizer.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/device.h"

#if defined(SEQKERN_CUDA_HOST)
#include "cuda_host/runtime.h"  // defines all of the above; tests/ is on its include path
#elif defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#if defined(SEQKERN_COOPERATIVE_GROUPS)
#include <cooperative_groups.h>
#endif

#define SEQKERN_SHARED(type, name, ...) __shared__ type name __VA_ARGS__
// All kernels see one array, which must have one type in a file.
#define SEQKERN_DYNAMIC_SHARED(type, name)                                        \
  extern __shared__ __align__(128) unsigned char seqkern_dynamic_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(seqkern_dynamic_shared_memory)

namespace seqkern::cuda {

using f16 = __half;
using bf16 = __nv_bfloat16;

// ---- Host side ----

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("seqkern: ") + what + ": " + cudaGetErrorString(error));
  }
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A));
  [&](P... values) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))..., nullptr};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers,
                           shared_bytes, static_cast<cudaStream_t>(stream)),
          "kernel launch");
  }(static_cast<A&&>(arguments)...);
}

template <class... P, class... A>
void launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                        Stream stream, A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A));
  [&](P... values) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))..., nullptr};
    check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers,
                                      shared_bytes, static_cast<cudaStream_t>(stream)),
          "cooperative kernel launch");
  }(static_cast<A&&>(arguments)...);
}

template <class... P>
void allow_shared_memory(void (*kernel)(P...), size_t bytes) {
  if (bytes <= 48 * 1024) return;  // any launch may have that; asking takes the host time
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "asking for shared memory");
}

template <class... P>
int resident_blocks(void (*kernel)(P...), int threads, size_t shared_bytes) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &blocks, reinterpret_cast<const void*>(kernel), threads, shared_bytes),
        "asking for the occupancy");
  return blocks;
}

inline void set_zero(void* pointer, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(pointer, 0, bytes, static_cast<cudaStream_t>(stream)), "memset");
}

// ---- Conversions ----

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ double to_float(double x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

// Rounds to the nearest, ties to even.
template <class T, class F>
__device__ __forceinline__ T from_float(F x) {
  if constexpr (std::is_same_v<T, f16>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(x);
  } else {
    return static_cast<T>(x);
  }
}

// Two 16-bit values in a register, the first in the low half, as mma's fragments have them.
template <class T>
__device__ __forceinline__ uint32_t pack(T low, T high) {
  static_assert(sizeof(T) == 2);
  if constexpr (std::is_same_v<T, f16>) {
    return __half_as_ushort(low) | uint32_t{__half_as_ushort(high)} << 16;
  } else {
    return __bfloat16_as_ushort(low) | uint32_t{__bfloat16_as_ushort(high)} << 16;
  }
}

// ---- Waiting and flags ----

// Every loop that waits for another thread.
template <class F>
__device__ __forceinline__ void spin_until(F predicate) {
  while (!predicate()) {
  }
}

template <class T>
__device__ __forceinline__ T load_acquire(const T* flag) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>);
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return static_cast<T>(value);
}

template <class T>
__device__ __forceinline__ void store_release(T* flag, std::type_identity_t<T> value) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>);
  asm volatile("st.release.gpu.global.u32 [%0], %1;"
               :
               : "l"(flag), "r"(static_cast<uint32_t>(value))
               : "memory");
}

// The host refuses a grid barrier elsewhere.
__device__ __forceinline__ void require_cooperative() {}

template <class T>
__device__ __forceinline__ void add_release(T* counter, std::type_identity_t<T> value) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>);
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;"
               :
               : "l"(counter), "r"(static_cast<uint32_t>(value))
               : "memory");
}

// ---- Asynchronous copies to shared memory; sm_75 copies at once ----

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies `valid` bytes and fills the rest of kBytes (4, 8 or 16, and the alignment) with zeros.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if __CUDA_ARCH__ >= 800
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "n"(kBytes), "r"(valid)
                 : "memory");
  }
#else
  if (kBytes == 16 && valid == 16) {
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
    return;
  }
  for (int i = 0; i < kBytes; ++i) {
    static_cast<char*>(shared)[i] = i < valid ? static_cast<const char*>(global)[i] : 0;
  }
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `kGroups` of this thread's committed groups are outstanding. Other threads
// see the data after a barrier.
template <int kGroups>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// ---- Tensor cores: all 32 lanes, sm_80 and newer ----
// With g = lane / 4 and t = lane % 4, element i of a lane's fragment is
//   A (8 values, 4 registers): row g + 8 * (i / 2 % 2), column 2 * t + i % 2 + 8 * (i / 4)
//   B (4 values, 2 registers): row 2 * t + i % 2 + 8 * (i / 2), column g
//   D (4 floats):              row g + 8 * (i / 2), column 2 * t + i % 2

// d[16][8] += a[16][16] b[16][8]
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>);
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, f16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  __trap();  // the planner never chooses it there
#endif
}

// 8x8 matrices of 16-bit values from shared memory: lane 8 * m + r gives the address of row r of
// matrix m (16 bytes, aligned); register m of lane l gets row l / 4, columns 2 * (l % 4) and the
// next. With _trans: column l / 4, rows 2 * (l % 4) and the next. x2 reads the addresses of the
// first 16 lanes.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

}  // namespace seqkern::cuda

#else
#error "csrc/cuda/simt.h: compile with nvcc, or with SEQKERN_CUDA_HOST defined (make cuda-host)"
#endif

namespace seqkern::cuda {

// Every thread of a cooperative launch makes one of these from the same counter, which is zero when
// the kernel starts, and calls wait equally often. With SEQKERN_COOPERATIVE_GROUPS it is that
// library's barrier.
class GridBarrier {
 public:
  __device__ __forceinline__ explicit GridBarrier(uint32_t* counter) : counter_(counter) {}

  __device__ __forceinline__ void wait() {
#if defined(SEQKERN_COOPERATIVE_GROUPS)
    cooperative_groups::this_grid().sync();
#else
    require_cooperative();
    target_ += gridDim.x * gridDim.y * gridDim.z;
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
      add_release(counter_, 1);
      spin_until([&] { return static_cast<int32_t>(load_acquire(counter_) - target_) >= 0; });
    }
    __syncthreads();
#endif
  }

 private:
  uint32_t* counter_;
  uint32_t target_ = 0;  // may wrap around
};

}  // namespace seqkern::cuda
