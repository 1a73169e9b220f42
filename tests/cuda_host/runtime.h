// The host's side of csrc/cuda/simt.h: CUDA's names for a C++ compiler. Each CUDA thread is a fiber
// that runs until it must wait for others; all of a launch are on one system thread, and a launch
// has ended when launch() returns. See README.md.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/device.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// ---- CUDA's types ----

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define SEQKERN_VECTOR(name, type)                                                            \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                    \
  struct alignas(sizeof(type) * 4 > 16 ? 16 : sizeof(type) * 4) name##4 { type x, y, z, w; }; \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                            \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SEQKERN_VECTOR(float, float)
SEQKERN_VECTOR(double, double)
SEQKERN_VECTOR(int, int)
SEQKERN_VECTOR(uint, unsigned)
#undef SEQKERN_VECTOR

namespace seqkern::cuda {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

namespace host {

using Where = std::source_location;

// ---- What tests set ----

// forward, reverse: every thread gets its turn, in order. greedy: a thread runs as far as it can,
// and waits are only looked at again when nothing else can run. random: another choice at each
// turn, with blocks that run ahead of others.
enum class Schedule { Forward, Reverse, Greedy, Random };
void set_schedule(Schedule schedule, uint64_t seed = 0);
void set_device(const DeviceProperties& properties);
DeviceProperties default_device();
// Launches since the last call, and threads among them.
struct Counts {
  int64_t launches, cooperative, threads, switches;
};
Counts take_counts();

// ---- The running thread ----

struct Thread {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  bool waiting = false;  // in spin_until
};
extern Thread* current;

// Stops the launch with this error.
[[noreturn]] void fail(const std::string& what, Where where);

// A point at which another thread may be given its turn.
void yield();
// One more look at a predicate that was false.
void wait_again(Where where);
void begin_wait(Where where);
void end_wait();

// Returns the sum over the block's threads.
int block_barrier(int value, Where where);

// All lanes of the mask meet; the last to come runs `combine` on what the lanes brought.
using Combine = void (*)(void* const (&lanes)[32], uint32_t mask);
void meet_lanes(uint32_t mask, Combine combine, void* mine, bool orders_memory, Where where);
unsigned lane_index();

void* dynamic_shared(Where where);
void* static_shared(const void* key, size_t bytes, size_t alignment, Where where);

void copy_later(void* shared, const void* global, int bytes, int valid, Where where);
void commit_copies();
void wait_for_copies(int groups);

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  bool cooperative;
  const void* kernel;
  std::function<void()> body;
};
void run(const Launch& launch);
void allow_shared(const void* kernel, size_t bytes);
int resident(int threads, size_t shared_bytes);

}  // namespace host
}  // namespace seqkern::cuda

#define threadIdx (::seqkern::cuda::host::current->thread)
#define blockIdx (::seqkern::cuda::host::current->block)
#define blockDim (::seqkern::cuda::host::current->block_dim)
#define gridDim (::seqkern::cuda::host::current->grid_dim)

// One variable per block and declaration. The key's address is the declaration's, also in each
// instance of a template.
#define SEQKERN_SHARED(type, name, ...)                                         \
  static const char name##_key = 0;                                             \
  typedef type name##_shared_type __VA_ARGS__;                                  \
  name##_shared_type& name =                                                    \
      *static_cast<name##_shared_type*>(::seqkern::cuda::host::static_shared(   \
          &name##_key, sizeof(name##_shared_type), alignof(name##_shared_type), \
          std::source_location::current()))
#define SEQKERN_DYNAMIC_SHARED(type, name) \
  type* const name =                       \
      static_cast<type*>(::seqkern::cuda::host::dynamic_shared(std::source_location::current()))

// ---- CUDA's functions ----

inline void __syncthreads(seqkern::cuda::host::Where where = std::source_location::current()) {
  seqkern::cuda::host::block_barrier(0, where);
}
inline int __syncthreads_or(int value,
                            seqkern::cuda::host::Where where = std::source_location::current()) {
  return seqkern::cuda::host::block_barrier(value != 0, where) != 0;
}

namespace seqkern::cuda::host {

// What happens between lanes is no memory access of a CUDA thread, so ThreadSanitizer must not see
// it as one.
#define SEQKERN_BETWEEN_LANES __attribute__((no_sanitize("thread")))

template <class T>
struct Exchange {
  T value, result;
  unsigned source;  // lane
};

template <class T>
T shuffle(uint32_t mask, T value, unsigned source, Where where) {
  Exchange<T> mine{value, value, source};
  meet_lanes(
      mask,
      [](void* const(&lanes)[32], uint32_t meeting) SEQKERN_BETWEEN_LANES {
        for (unsigned lane = 0; lane < 32; ++lane) {
          if (!(meeting >> lane & 1)) continue;
          auto& to = *static_cast<Exchange<T>*>(lanes[lane]);
          if (meeting >> to.source & 1) {
            to.result = static_cast<const Exchange<T>*>(lanes[to.source])->value;
          } else {  // undefined: the lane takes no part
            for (size_t i = 0; i < sizeof(T); ++i) {
              reinterpret_cast<volatile unsigned char*>(&to.result)[i] = 0xff;
            }
          }
        }
      },
      &mine, false, where);
  return mine.result;
}

struct Vote {
  bool value;
  uint32_t ballot;
};
inline uint32_t vote(uint32_t mask, bool value, Where where) {
  Vote mine{value, 0};
  meet_lanes(
      mask,
      [](void* const(&lanes)[32], uint32_t meeting) SEQKERN_BETWEEN_LANES {
        uint32_t ballot = 0;
        for (unsigned lane = 0; lane < 32; ++lane) {
          if (meeting >> lane & 1 && static_cast<Vote*>(lanes[lane])->value) ballot |= 1u << lane;
        }
        for (unsigned lane = 0; lane < 32; ++lane) {
          if (meeting >> lane & 1) static_cast<Vote*>(lanes[lane])->ballot = ballot;
        }
      },
      &mine, false, where);
  return mine.ballot;
}

}  // namespace seqkern::cuda::host

inline void __syncwarp(uint32_t mask = 0xffffffff,
                       seqkern::cuda::host::Where where = std::source_location::current()) {
  seqkern::cuda::host::meet_lanes(mask, [](void* const(&)[32], uint32_t) {}, nullptr, true, where);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
              seqkern::cuda::host::Where where = std::source_location::current()) {
  const unsigned lane = seqkern::cuda::host::lane_index();
  const unsigned from = (lane & ~(width - 1)) | (source & (width - 1));
  return seqkern::cuda::host::shuffle(mask, value, from, where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32,
                  seqkern::cuda::host::Where where = std::source_location::current()) {
  const unsigned lane = seqkern::cuda::host::lane_index(), from = lane ^ bits;
  // A lane of a later group is out of reach.
  const bool reached = from < (lane & ~(width - 1)) + width;
  return seqkern::cuda::host::shuffle(mask, value, reached ? from : lane, where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   seqkern::cuda::host::Where where = std::source_location::current()) {
  const unsigned lane = seqkern::cuda::host::lane_index();
  const bool reached = (lane & (width - 1)) + delta < static_cast<unsigned>(width);
  return seqkern::cuda::host::shuffle(mask, value, reached ? lane + delta : lane, where);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 seqkern::cuda::host::Where where = std::source_location::current()) {
  const unsigned lane = seqkern::cuda::host::lane_index();
  const bool reached = (lane & (width - 1)) >= delta;
  return seqkern::cuda::host::shuffle(mask, value, reached ? lane - delta : lane, where);
}
inline uint32_t __ballot_sync(uint32_t mask, int value,
                              seqkern::cuda::host::Where where = std::source_location::current()) {
  return seqkern::cuda::host::vote(mask, value != 0, where);
}
inline int __any_sync(uint32_t mask, int value,
                      seqkern::cuda::host::Where where = std::source_location::current()) {
  return seqkern::cuda::host::vote(mask, value != 0, where) != 0;
}
inline int __all_sync(uint32_t mask, int value,
                      seqkern::cuda::host::Where where = std::source_location::current()) {
  return seqkern::cuda::host::vote(mask, value != 0, where) == mask;
}

// Relaxed, as CUDA's.
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  seqkern::cuda::host::yield();
  if constexpr (std::is_integral_v<T>) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  } else {
    T before, after;
    __atomic_load(address, &before, __ATOMIC_RELAXED);
    do {
      after = before + value;
    } while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
    return before;
  }
}
template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

namespace seqkern::cuda {

// ---- Host side ----

namespace host {
template <class... P, class... A>
void start(bool cooperative, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
           A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A));
  const std::tuple<P...> values(static_cast<A&&>(arguments)...);
  run({grid, block, shared_bytes, cooperative, reinterpret_cast<const void*>(kernel),
       [&] { std::apply(kernel, values); }});
}
}  // namespace host

// Done when it returns, so that all streams are in order.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream /*stream*/,
            A&&... arguments) {
  host::start(false, kernel, grid, block, shared_bytes, static_cast<A&&>(arguments)...);
}
template <class... P, class... A>
void launch_cooperative(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                        Stream /*stream*/, A&&... arguments) {
  host::start(true, kernel, grid, block, shared_bytes, static_cast<A&&>(arguments)...);
}
template <class... P>
void allow_shared_memory(void (*kernel)(P...), size_t bytes) {
  host::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}
template <class... P>
int resident_blocks(void (* /*kernel*/)(P...), int threads, size_t shared_bytes) {
  return host::resident(threads, shared_bytes);
}
inline void set_zero(void* pointer, size_t bytes, Stream /*stream*/) {
  std::memset(pointer, 0, bytes);
}

// ---- Conversions ----

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }
inline float to_float(f16 x) { return static_cast<float>(std::bit_cast<_Float16>(x)); }
inline float to_float(bf16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

template <class T, class F>
T from_float(F x) {
  if constexpr (std::is_same_v<T, f16>) {
    return std::bit_cast<f16>(static_cast<_Float16>(static_cast<float>(x)));
  } else if constexpr (std::is_same_v<T, bf16>) {
    const auto bits = std::bit_cast<uint32_t>(static_cast<float>(x));
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};  // NaN, as __float2bfloat16_rn has it
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else {
    return static_cast<T>(x);
  }
}
template <class T>
uint32_t pack(T low, T high) {
  static_assert(sizeof(T) == 2);
  return low.bits | uint32_t{high.bits} << 16;
}

// ---- Waiting and flags ----

template <class F>
void spin_until(F predicate, host::Where where = std::source_location::current()) {
  host::begin_wait(where);
  while (!predicate()) host::wait_again(where);
  host::end_wait();
}
template <class T>
T load_acquire(const T* flag) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>);
  host::yield();
  return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}
template <class T>
void store_release(T* flag, std::type_identity_t<T> value) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>);
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
  host::yield();
}
template <class T>
void add_release(T* counter, std::type_identity_t<T> value) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>);
  __atomic_fetch_add(counter, value, __ATOMIC_RELEASE);
  host::yield();
}
void require_cooperative(host::Where where = std::source_location::current());

// ---- Asynchronous copies: done in the last moment, until then the destination holds NaNs ----

template <int kBytes>
void cp_async(void* shared, const void* global, int valid = kBytes,
              host::Where where = std::source_location::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  host::copy_later(shared, global, kBytes, valid, where);
}
inline void cp_async_commit() { host::commit_copies(); }
template <int kGroups>
void cp_async_wait() {
  host::wait_for_copies(kGroups);
}

// ---- Tensor cores ----

namespace host {
struct Fragments {
  uint32_t a[4], b[2];
  float d[4];
};
template <class T>
void multiply(void* const (&lanes)[32], uint32_t mask);
// Row addresses of kMatrices matrices, and those that the lane reads from afterwards.
struct Rows {
  const void* mine;
  const unsigned char* all[32];
};
void gather_rows(void* const (&lanes)[32], uint32_t mask);
void check_row(const void* row, Where where);

template <int kMatrices, bool kTransposed>
void load_matrices(uint32_t (&r)[kMatrices], const void* row, Where where) {
  const unsigned lane = lane_index();
  if (lane < 8 * kMatrices) check_row(row, where);
  Rows rows{row, {}};
  meet_lanes(0xffffffff, gather_rows, &rows, false, where);
  for (int m = 0; m < kMatrices; ++m) {
    uint16_t values[2];
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned pair = 2 * (lane % 4) + i;
      const unsigned from_row = kTransposed ? pair : lane / 4;
      const unsigned column = kTransposed ? lane / 4 : pair;
      values[i] = reinterpret_cast<const uint16_t*>(rows.all[8 * m + from_row])[column];
    }
    r[m] = values[0] | uint32_t{values[1]} << 16;
  }
}
}  // namespace host

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  host::Where where = std::source_location::current()) {
  host::Fragments mine;
  for (int i = 0; i < 4; ++i) mine.a[i] = a[i];
  for (int i = 0; i < 2; ++i) mine.b[i] = b[i];
  for (int i = 0; i < 4; ++i) mine.d[i] = d[i];
  host::meet_lanes(0xffffffff, host::multiply<T>, &mine, false, where);
  for (int i = 0; i < 4; ++i) d[i] = mine.d[i];
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row,
                        host::Where where = std::source_location::current()) {
  host::load_matrices<4, false>(r, row, where);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row,
                              host::Where where = std::source_location::current()) {
  host::load_matrices<4, true>(r, row, where);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row,
                        host::Where where = std::source_location::current()) {
  host::load_matrices<2, false>(r, row, where);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row,
                              host::Where where = std::source_location::current()) {
  host::load_matrices<2, true>(r, row, where);
}

}  // namespace seqkern::cuda
