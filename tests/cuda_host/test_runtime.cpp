// Tests of the runtime on small kernels: test_runtime NAME runs one, test_runtime lists them. Those
// under "sanitizer" are meant to be ended by one; test_cuda_host_runtime.py says by which.
#include <cmath>
#include <cstdio>
#include <map>

#include "cuda/simt.h"

using namespace seqkern::cuda;
using host::Schedule;

namespace {

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("failed: " + what);
}

// The launch must throw, and say all of these.
template <class F>
void expect_error(F&& f, std::initializer_list<const char*> words) {
  std::string message;
  try {
    f();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  for (const char* word : words) {
    expect(message.find(word) != std::string::npos,
           std::string("an error with '") + word + "', got '" + message + "'");
  }
}

template <class F>
void for_each_schedule(F&& f) {
  for (const Schedule schedule : {Schedule::Forward, Schedule::Reverse, Schedule::Greedy}) {
    host::set_schedule(schedule);
    f();
  }
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    host::set_schedule(Schedule::Random, seed);
    f();
  }
  host::set_schedule(Schedule::Forward);
}

// Whether f's result is wrong under some schedule of the kind.
template <class F>
bool fails_under(Schedule schedule, F&& right) {
  bool failed = false;
  for (uint64_t seed = 1; seed <= (schedule == Schedule::Random ? 5 : 1); ++seed) {
    host::set_schedule(schedule, seed);
    failed |= !right();
  }
  host::set_schedule(Schedule::Forward);
  return failed;
}

// ---- Blocks ----

__global__ void write_indices(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] += static_cast<int>(block * 1000 + thread);
}

void indices() {
  for_each_schedule([] {
    std::vector<int> out(3 * 2 * 2 * 24);
    launch(write_indices, dim3(3, 2, 2), dim3(4, 3, 2), 0, nullptr, out.data());
    for (int i = 0; i < static_cast<int>(out.size()); ++i) {
      expect(out[i] == i / 24 * 1000 + i % 24, "each thread runs once");
    }
  });
}

template <bool kBarrier>
__global__ void rotate(const int* in, int* out) {
  SEQKERN_SHARED(int, tile, [64]);
  const int t = threadIdx.x, base = blockIdx.x * 64;
  for (int round = 0; round < 3; ++round) {
    tile[t] = round == 0 ? in[base + t] : out[base + t];
    __syncthreads();
    out[base + t] = tile[(t + 1) % 64];
    if (kBarrier) __syncthreads();
  }
}

bool rotates(void (*kernel)(const int*, int*)) {
  constexpr int n = 64 * 7;
  std::vector<int> in(n), out(n);
  for (int i = 0; i < n; ++i) in[i] = i;
  launch(kernel, 7, 64, 0, nullptr, in.data(), out.data());
  for (int i = 0; i < n; ++i) {
    if (out[i] != i / 64 * 64 + (i + 3) % 64) return false;
  }
  return true;
}

void barriers() {
  for_each_schedule([] { expect(rotates(rotate<true>), "rotation"); });
}

void missing_barrier() {
  const auto right = [] { return rotates(rotate<false>); };
  expect(fails_under(Schedule::Greedy, right), "greedy finds the missing barrier");
  expect(fails_under(Schedule::Random, right), "random finds the missing barrier");
}

__global__ void count_any(int* out) {
  for (int i = 0; i < 40; ++i) {
    const int any = __syncthreads_or(i % 3 == 0 && threadIdx.x == i % blockDim.x);
    if (any) out[threadIdx.x] += 1;
  }
}

void barrier_or() {
  for_each_schedule([] {
    std::vector<int> out(20);
    launch(count_any, 1, 20, 0, nullptr, out.data());
    for (const int n : out) expect(n == 14, "__syncthreads_or");
  });
}

__global__ void early_return(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

void returned_threads() {
  for_each_schedule([] {
    std::vector<int> out(64);
    launch(early_return, 1, 64, 0, nullptr, out.data());
    expect(out[39] == 1 && out[40] == 0, "a barrier of those that are left");
  });
}

__global__ void diverge() {
  if (threadIdx.x < 5) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void divergent_barrier() {
  for_each_schedule([] {
    expect_error([] { launch(diverge, 1, 64, 0, nullptr); },
                 {"a barrier of the block, while others", "test_runtime.cpp:"});
  });
}

// ---- Warps ----

__global__ void shuffles(int* out) {
  const int t = threadIdx.x, lane = t % 32;
  int* mine = out + t * 8;
  mine[0] = __shfl_sync(0xffffffff, t, 5);
  mine[1] = __shfl_xor_sync(0xffffffff, t, 3);
  mine[2] = __shfl_down_sync(0xffffffff, t, 4);
  mine[3] = __shfl_up_sync(0xffffffff, t, 4);
  mine[4] = __shfl_down_sync(0xffffffff, t, 1, 8);
  mine[5] = static_cast<int>(__ballot_sync(0xffffffff, lane % 3 == 0));
  // Halves of the warp on their own, different numbers of times.
  const uint32_t mask = lane < 16 ? 0xffff : 0xffff0000;
  double sum = t;
  for (int round = 0; round < (lane < 16 ? 1 : 2); ++round) {
    for (int bits = 1; bits < 16; bits *= 2) sum += __shfl_xor_sync(mask, sum, bits);
  }
  mine[6] = static_cast<int>(sum);
  mine[7] = __any_sync(mask, lane == 3) * 2 + __all_sync(mask, lane >= 16);
}

void warps() {
  for_each_schedule([] {
    std::vector<int> out(96 * 8);
    launch(shuffles, 1, 96, 0, nullptr, out.data());
    for (int t = 0; t < 96; ++t) {
      const int lane = t % 32, base = t - lane, *mine = out.data() + t * 8;
      expect(mine[0] == base + 5, "shfl");
      expect(mine[1] == (t ^ 3), "shfl_xor");
      expect(mine[2] == (lane < 28 ? t + 4 : t), "shfl_down");
      expect(mine[3] == (lane >= 4 ? t - 4 : t), "shfl_up");
      expect(mine[4] == (lane % 8 < 7 ? t + 1 : t), "shfl_down in groups of 8");
      expect(mine[5] == 0x49249249, "ballot");
      const int low = 16 * base + 120, high = (16 * base + 376) * 16;
      expect(mine[6] == (lane < 16 ? low : high), "sums over half warps");
      expect(mine[7] == (lane < 16 ? 2 : 1), "votes");
    }
  });
}

__global__ void without_a_lane(float* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffff, 1.f, 1);
}
__global__ void from_outside(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffff, 1.f, 20);
}
__global__ void not_in_mask(float* out) { out[threadIdx.x] = __shfl_sync(0xffff, 1.f, 0); }
__global__ void two_calls(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(0xffffffff, 1.f, 0);
  } else {
    out[threadIdx.x] = __shfl_sync(0xffffffff, 1.f, 0);
  }
}

void wrong_shuffles() {
  float out[32];
  for_each_schedule([&] {
    expect_error([&] { launch(without_a_lane, 1, 32, 0, nullptr, out); }, {"lane"});
    expect_error([&] { launch(not_in_mask, 1, 32, 0, nullptr, out); }, {"not in its own mask"});
    expect_error([&] { launch(two_calls, 1, 32, 0, nullptr, out); }, {"lanes meet, while others"});
    launch(from_outside, 1, 32, 0, nullptr, out);
    expect(std::isnan(out[3]), "what comes from a lane outside the mask is undefined");
  });
}

// ---- Grids ----

template <bool kBarrier>
__global__ void neighbours(const int* in, int* out, uint32_t* counter) {
  GridBarrier barrier(counter);
  const int n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  int* buffers[2] = {out, out + n};
  out[i] = in[i];
  for (int step = 0; step < 4; ++step) {
    if (kBarrier || step != 2) barrier.wait();
    buffers[(step + 1) % 2][i] = buffers[step % 2][(i + 1) % n] + 1;
  }
}

bool neighbours_right(void (*kernel)(const int*, int*, uint32_t*)) {
  constexpr int blocks = 5, threads = 33, n = blocks * threads;
  std::vector<int> in(n), out(2 * n, -1);
  for (int i = 0; i < n; ++i) in[i] = 10 * i;
  uint32_t counter = 0;
  launch_cooperative(kernel, blocks, threads, 0, nullptr, in.data(), out.data(), &counter);
  for (int i = 0; i < n; ++i) {
    if (out[i] != 10 * ((i + 4) % n) + 4) return false;
  }
  return true;
}

void grid_barrier() {
  for_each_schedule([] { expect(neighbours_right(neighbours<true>), "four steps"); });
  expect(host::take_counts().cooperative == 8, "cooperative launches are counted");
}

void missing_grid_barrier() {
  const auto right = [] { return neighbours_right(neighbours<false>); };
  expect(fails_under(Schedule::Greedy, right), "greedy finds the missing grid barrier");
  expect(fails_under(Schedule::Random, right), "random finds the missing grid barrier");
}

// Each block adds to what the block before it made, step by step.
template <bool kFlagFirst>
__global__ void chain(int* data, int* flags, int steps) {
  const int block = blockIdx.x, blocks = gridDim.x;
  for (int t = 1; t <= steps; ++t) {
    const int before = block == 0 ? blocks - 1 : block - 1, wanted = block == 0 ? t - 1 : t;
    if (threadIdx.x == 0) spin_until([&] { return load_acquire(flags + before) >= wanted; });
    __syncthreads();
    const int value = block == 0 && t == 1 ? 0 : data[before * 32 + threadIdx.x];
    if (kFlagFirst && threadIdx.x == 0) store_release(flags + block, t);
    data[block * 32 + threadIdx.x] = value + 1;
    __syncthreads();
    if (!kFlagFirst && threadIdx.x == 0) store_release(flags + block, t);
  }
}

bool chain_right(void (*kernel)(int*, int*, int)) {
  int data[4 * 32] = {}, flags[4] = {};
  launch_cooperative(kernel, 4, 32, 0, nullptr, data, flags, 6);
  for (int i = 0; i < 32; ++i) {
    if (data[3 * 32 + i] != 24) return false;
  }
  return true;
}

void flags() {
  for_each_schedule([] { expect(chain_right(chain<false>), "24 additions"); });
}

void flag_before_data() {
  const auto right = [] { return chain_right(chain<true>); };
  expect(fails_under(Schedule::Random, right), "random finds the early flag");
}

__global__ void add_all(int* sum, float* float_sum) {
  atomicAdd(sum, 1);
  atomicAdd(float_sum, .5f);
}

void atomics() {
  for_each_schedule([] {
    int sum = 0;
    float float_sum = 0;
    launch(add_all, 9, 40, 0, nullptr, &sum, &float_sum);
    expect(sum == 360 && float_sum == 180, "atomicAdd");
  });
}

// ---- Errors ----

__global__ void wait_for_nobody(int* flag) {
  spin_until([&] { return load_acquire(flag) == 1; });
}
const std::string kWaitLine = std::to_string(__LINE__ - 2);

__global__ void barrier_of_some(int* flag) {
  if (threadIdx.x < 3) spin_until([&] { return load_acquire(flag) == 1; });
  __syncthreads();
}
__global__ void half_a_shuffle(int* flag) {
  if (threadIdx.x < 16) *flag = __shfl_sync(0xffffffff, 1, 0);
  __syncthreads();
}

void deadlocks() {
  int flag = 0;
  for_each_schedule([&] {
    expect_error(
        [&] { launch_cooperative(wait_for_nobody, 2, 8, 0, nullptr, &flag); },
        {"deadlock", "16 threads wait in spin_until", ("test_runtime.cpp:" + kWaitLine).c_str()});
    expect_error(
        [&] { launch(barrier_of_some, 1, 40, 0, nullptr, &flag); },
        {"deadlock", "3 threads wait in spin_until", "37 threads wait at a barrier of the block"});
    expect_error([&] { launch(half_a_shuffle, 1, 32, 0, nullptr, &flag); },
                 {"deadlock", "16 threads wait for other lanes", "thread 16 of block (0, 0, 0)"});
    // The next launch starts afresh.
    std::vector<int> out(64);
    launch(early_return, 1, 64, 0, nullptr, out.data());
    expect(out[39] == 1, "a launch after a deadlock");
  });
}

__global__ void use_static(int* out) {
  SEQKERN_SHARED(float, large, [12 * 1024 + 1]);
  large[threadIdx.x] = 0;
  *out = 1;
}
__global__ void use_dynamic(float* out, int n) {
  SEQKERN_DYNAMIC_SHARED(float, memory);
  float worst = 0;
  for (int i = 0; i < n; ++i) worst = memory[i] == memory[i] ? 1 : worst;
  memory[n - 1] = 3;
  out[0] = memory[n - 1];
  out[1] = worst;
}

void limits() {
  int out = 0;
  float result[2];
  uint32_t counter = 0;
  DeviceProperties small = device_properties(0);
  small.multiprocessors = 2;
  small.threads_per_multiprocessor = 256;
  expect_error([&] { launch(use_static, 1, 32, 0, nullptr, &out); }, {"of static", "49156"});
  expect_error([&] { launch(use_dynamic, 1, 1, 49156, nullptr, result, 4); },
               {"49156 bytes of dynamic shared memory, allowed are 49152"});
  allow_shared_memory(use_dynamic, 60000);
  launch(use_dynamic, 1, 1, 60000, nullptr, result, 15000);
  expect(result[0] == 3, "dynamic shared memory after asking");
  expect(result[1] == 0, "fresh shared memory holds NaN");
  expect_error([&] { launch(use_dynamic, 1, 1, 60004, nullptr, result, 4); },
               {"allowed are 60000"});
  expect_error([&] { allow_shared_memory(use_dynamic, 200000); }, {"asking for 200000 bytes"});
  expect_error([&] { launch(use_dynamic, 1, 1, 0, nullptr, result, 4); },
               {"no dynamic shared memory"});
  expect_error([&] { launch(write_indices, 1, 1025, 0, nullptr, &out); }, {"1025 threads"});
  expect_error([&] { launch(write_indices, 0, 32, 0, nullptr, &out); }, {"grid of 0"});
  const DeviceProperties before = device_properties(0);
  host::set_device(small);
  expect(resident_blocks(neighbours<true>, 100, 0) == 2, "two blocks of 128 threads in 256");
  expect(resident_blocks(neighbours<true>, 100, 90 << 10) == 1, "shared memory for one block");
  std::vector<int> in(5 * 100), both(2 * 5 * 100);
  expect_error(
      [&] {
        launch_cooperative(neighbours<true>, 5, 100, 0, nullptr, in.data(), both.data(), &counter);
      },
      {"cooperative launch of 5 blocks, resident at once are 4"});
  host::set_device(before);
}

__global__ void only_barrier(uint32_t* counter) {
  GridBarrier barrier(counter);
  barrier.wait();
}

void grid_barrier_refused() {
  uint32_t counter = 0;
  int flag = 1;
  for_each_schedule([&] {
    expect_error([&] { launch(only_barrier, 1, 32, 0, nullptr, &counter); },
                 {"a grid barrier outside a cooperative launch", "simt.h:"});
    expect_error([&] { launch(wait_for_nobody, 2, 32, 0, nullptr, &flag); },
                 {"spin_until outside a cooperative launch"});
  });
}

// ---- Asynchronous copies ----

enum class Wait { Right, None, TooFew };

template <Wait kWait>
__global__ void copy_through(const float* in, float* out, int steps) {
  SEQKERN_SHARED(float, stage, [2][128]);
  const int t = threadIdx.x;
  cp_async<16>(&stage[0][4 * t], in + 4 * t);
  cp_async_commit();
  for (int s = 0; s < steps; ++s) {
    if (s + 1 < steps) cp_async<16>(&stage[(s + 1) % 2][4 * t], in + (s + 1) * 128 + 4 * t);
    cp_async_commit();
    if (kWait == Wait::Right) cp_async_wait<1>();
    if (kWait == Wait::TooFew) cp_async_wait<2>();
    __syncthreads();
    for (int i = t; i < 128; i += 32) out[s * 128 + i] = stage[s % 2][127 - i];
    __syncthreads();
  }
}

bool copies(void (*kernel)(const float*, float*, int)) {
  constexpr int steps = 5;
  std::vector<float> in(steps * 128), out(steps * 128);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  launch(kernel, 1, 32, 0, nullptr, in.data(), out.data(), steps);
  for (int i = 0; i < steps * 128; ++i) {
    if (out[i] != static_cast<float>(i / 128 * 128 + 127 - i % 128)) return false;
  }
  return true;
}

__global__ void copy_some(const float* in, float* out) {
  SEQKERN_SHARED(float, stage, [4]);
  cp_async<16>(stage, in, 8);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) out[i] = stage[i];
}
__global__ void copy_unaligned(const float* in) {
  SEQKERN_SHARED(float, stage, [8]);
  cp_async<16>(stage + 1, in);
}
__global__ void copy_to_global(const float* in, float* out) { cp_async<4>(out, in); }

void async_copies() {
  for_each_schedule([] {
    expect(copies(copy_through<Wait::Right>), "copies with waits");
    expect(!copies(copy_through<Wait::None>), "a missing wait is found");
    expect(!copies(copy_through<Wait::TooFew>), "a wait for too few is found");
    alignas(16) const float two[] = {1, 2, 3, 4};
    float out[4];
    launch(copy_some, 1, 1, 0, nullptr, two, out);
    expect(out[0] == 1 && out[1] == 2 && out[2] == 0 && out[3] == 0, "filled with zeros");
    expect_error([&] { launch(copy_unaligned, 1, 1, 0, nullptr, two); }, {"not aligned"});
    expect_error([&] { launch(copy_to_global, 1, 1, 0, nullptr, two, out); },
                 {"to no shared memory"});
  });
}

// ---- Tensor cores: integers that T holds exactly, so that every sum is exact ----

template <class T>
__global__ void multiply_tile(const float* a, const float* b, float* d) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  uint32_t ra[4], rb[2];
  // From the PTX ISA's registers, not its elements: a0 a1 | a2 a3 | a4 a5 | a6 a7, b0 b1 | b2 b3.
  const auto at = [&](const float* m, int i) { return from_float<T>(m[i]); };
  ra[0] = pack(at(a, g * 16 + 2 * t), at(a, g * 16 + 2 * t + 1));
  ra[1] = pack(at(a, (g + 8) * 16 + 2 * t), at(a, (g + 8) * 16 + 2 * t + 1));
  ra[2] = pack(at(a, g * 16 + 2 * t + 8), at(a, g * 16 + 2 * t + 9));
  ra[3] = pack(at(a, (g + 8) * 16 + 2 * t + 8), at(a, (g + 8) * 16 + 2 * t + 9));
  rb[0] = pack(at(b, 2 * t * 8 + g), at(b, (2 * t + 1) * 8 + g));
  rb[1] = pack(at(b, (2 * t + 8) * 8 + g), at(b, (2 * t + 9) * 8 + g));
  float rd[4] = {d[g * 8 + 2 * t], d[g * 8 + 2 * t + 1], d[(g + 8) * 8 + 2 * t],
                 d[(g + 8) * 8 + 2 * t + 1]};
  mma_m16n8k16<T>(rd, ra, rb);
  d[g * 8 + 2 * t] = rd[0];
  d[g * 8 + 2 * t + 1] = rd[1];
  d[(g + 8) * 8 + 2 * t] = rd[2];
  d[(g + 8) * 8 + 2 * t + 1] = rd[3];
}

// One entry of a and one of b at a time: each product must come out in its one place.
template <class T>
void mma_of() {
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      float a[256] = {}, b[128], d[128], c[128];
      a[row * 16 + k] = 1;
      for (int i = 0; i < 128; ++i) b[i] = static_cast<float>(i + 1);  // distinct, exact
      for (int i = 0; i < 128; ++i) d[i] = c[i] = static_cast<float>(1000 * i);
      launch(multiply_tile<T>, 1, 32, 0, nullptr, a, b, d);
      for (int i = 0; i < 128; ++i) {
        expect(d[i] == c[i] + (i / 8 == row ? b[k * 8 + i % 8] : 0), "one product");
      }
    }
  }
  float a[256], b[128], d[128] = {};
  for (int i = 0; i < 256; ++i) a[i] = static_cast<float>(i);  // distinct, exact in bf16
  for (int i = 0; i < 128; ++i) b[i] = static_cast<float>(i - 64);
  launch(multiply_tile<T>, 1, 32, 0, nullptr, a, b, d);
  for (int i = 0; i < 128; ++i) {
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += a[i / 8 * 16 + k] * b[k * 8 + i % 8];
    expect(d[i] == sum, "matrix product");
  }
}

void mma() {
  for_each_schedule([] {
    mma_of<f16>();
    mma_of<bf16>();
  });
}

__global__ void load_fragments(const uint16_t* in, uint32_t* out) {
  SEQKERN_SHARED(uint16_t, tile, [32 * 8 + 8]);
  uint16_t* const rows = tile + (8 - reinterpret_cast<uintptr_t>(tile) / 2 % 8) % 8;
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) rows[lane * 8 + i] = in[lane * 8 + i];
  __syncwarp();
  uint32_t r[12];
  uint32_t four[4], two[2];
  ldmatrix_x4(four, rows + lane * 8);
  for (int i = 0; i < 4; ++i) r[i] = four[i];
  ldmatrix_x4_trans(four, rows + lane * 8);
  for (int i = 0; i < 4; ++i) r[4 + i] = four[i];
  ldmatrix_x2(two, lane < 16 ? rows + lane * 8 : nullptr);
  r[8] = two[0], r[9] = two[1];
  ldmatrix_x2_trans(two, lane < 16 ? rows + lane * 8 : nullptr);
  r[10] = two[0], r[11] = two[1];
  for (int i = 0; i < 12; ++i) out[lane * 12 + i] = r[i];
}

void load_matrices() {
  for_each_schedule([] {
    std::vector<uint16_t> in(256);
    std::vector<uint32_t> out(32 * 12);
    for (int i = 0; i < 256; ++i) in[i] = static_cast<uint16_t>(i);
    launch(load_fragments, 1, 32, 0, nullptr, in.data(), out.data());
    const auto at = [](int m, int row, int column) { return (m * 8 + row) * 8 + column; };
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int m = 0; m < 4; ++m) {
        const uint32_t plain = at(m, g, 2 * t) | at(m, g, 2 * t + 1) << 16;
        const uint32_t turned = at(m, 2 * t, g) | at(m, 2 * t + 1, g) << 16;
        expect(out[lane * 12 + m] == plain, "ldmatrix x4");
        expect(out[lane * 12 + 4 + m] == turned, "ldmatrix x4 trans");
        if (m >= 2) continue;
        expect(out[lane * 12 + 8 + m] == plain, "ldmatrix x2");
        expect(out[lane * 12 + 10 + m] == turned, "ldmatrix x2 trans");
      }
    }
  });
}

// ---- Conversions ----

template <class T>
__global__ void convert(const float* in, float* out, int n) {
  for (int i = 0; i < n; ++i) out[i] = to_float(from_float<T>(in[i]));
}

void conversions() {
  const float in[] = {1,        1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1p-11f, 1 + 0x3p-11f,
                      0x1p-24f, 65520,       -0.f};
  const float bf[] = {1, 1, 1 + 0x1p-6f, 1, 1, 0x1p-24f, 65536, -0.f};
  const float h[] = {1, 1 + 0x1p-8f, 1 + 0x3p-8f, 1, 1 + 0x1p-9f, 0x1p-24f, INFINITY, -0.f};
  float out[8], nan = NAN;
  launch(convert<bf16>, 1, 1, 0, nullptr, in, out, 8);
  for (int i = 0; i < 8; ++i) expect(out[i] == bf[i] && std::signbit(out[i]) == (i == 7), "bf16");
  launch(convert<f16>, 1, 1, 0, nullptr, in, out, 8);
  for (int i = 0; i < 8; ++i) expect(out[i] == h[i] && std::signbit(out[i]) == (i == 7), "f16");
  launch(convert<bf16>, 1, 1, 0, nullptr, &nan, out, 1);
  launch(convert<f16>, 1, 1, 0, nullptr, &nan, out + 1, 1);
  expect(std::isnan(out[0]) && std::isnan(out[1]), "NaN");
}

// ---- For the sanitizers ----

__global__ void overrun_shared(int i) {
  SEQKERN_SHARED(float, tile, [33]);
  tile[i] = 1;
}
__global__ void overrun_dynamic(int i) {
  SEQKERN_DYNAMIC_SHARED(float, memory);
  memory[i] = 1;
}
__global__ void overrun_local(int i) {
  float kept[7] = {};
  __syncthreads();
  kept[i] = 1;
  __syncthreads();
  if (kept[0] != 0) __syncthreads();
}

void shared_overrun() { launch(overrun_shared, 1, 1, 0, nullptr, 33); }
void dynamic_overrun() { launch(overrun_dynamic, 1, 1, 12, nullptr, 3); }
void global_overrun() {
  std::vector<int> out(63);
  launch(early_return, 1, 64, 0, nullptr, out.data() + 24);
}
void local_overrun() { launch(overrun_local, 1, 40, 0, nullptr, 7); }

// Right under the schedule that it runs with, and a race all the same.
__global__ void race_in_block(int* out) {
  SEQKERN_SHARED(int, tile, [64]);
  tile[threadIdx.x] = 1;
  if (threadIdx.x > 0) out[threadIdx.x] = tile[threadIdx.x - 1];
}
__global__ void race_after_shuffle(int* out) {
  SEQKERN_SHARED(int, tile, [32]);
  tile[threadIdx.x] = __shfl_xor_sync(0xffffffff, 1, 1);
  if (threadIdx.x == __shfl_sync(0xffffffff, 5u, 5)) out[0] = tile[4];
}
__global__ void race_of_blocks(int* out) { out[0] = static_cast<int>(threadIdx.x); }

void block_race() {
  int out[64];
  launch(race_in_block, 1, 64, 0, nullptr, out);
}
void shuffle_race() {
  int out[1];
  launch(race_after_shuffle, 1, 32, 0, nullptr, out);
}
// The second block takes the first one's place.
void grid_race() {
  int out[1];
  launch(race_of_blocks, 9, 1, 0, nullptr, out);
}
void flag_race() { chain_right(chain<true>); }

using Test = void (*)();
const std::map<std::string, Test> kTests = {
    {"indices", indices},
    {"barriers", barriers},
    {"missing_barrier", missing_barrier},
    {"barrier_or", barrier_or},
    {"returned_threads", returned_threads},
    {"divergent_barrier", divergent_barrier},
    {"warps", warps},
    {"wrong_shuffles", wrong_shuffles},
    {"grid_barrier", grid_barrier},
    {"missing_grid_barrier", missing_grid_barrier},
    {"flags", flags},
    {"flag_before_data", flag_before_data},
    {"atomics", atomics},
    {"deadlocks", deadlocks},
    {"limits", limits},
    {"grid_barrier_refused", grid_barrier_refused},
    {"async_copies", async_copies},
    {"mma", mma},
    {"load_matrices", load_matrices},
    {"conversions", conversions},
};
const std::map<std::string, Test> kSanitizerTests = {
    {"shared_overrun", shared_overrun}, {"dynamic_overrun", dynamic_overrun},
    {"global_overrun", global_overrun}, {"local_overrun", local_overrun},
    {"block_race", block_race},         {"shuffle_race", shuffle_race},
    {"grid_race", grid_race},           {"flag_race", flag_race},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const auto& [name, test] : kTests) std::printf("%s\n", name.c_str());
    return 0;
  }
  try {
    const auto& tests = kTests.count(argv[1]) ? kTests : kSanitizerTests;
    tests.at(argv[1])();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[1], error.what());
    return 1;
  }
  return 0;
}
