#include "cpu/capability.h"

#include <unistd.h>
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#include <atomic>
#include <stdexcept>

#include "cpu/kernels.h"

namespace seqkern::cpu {

namespace {

constexpr Capability kAll[] = {Capability::Default, Capability::AVX2, Capability::AVX512};

bool is_compiled(Capability capability) {
  switch (capability) {
    case Capability::Default:
      return true;
    case Capability::AVX2:
#ifdef SEQKERN_COMPILED_AVX2
      return true;
#else
      return false;
#endif
    case Capability::AVX512:
#ifdef SEQKERN_COMPILED_AVX512
      return true;
#else
      return false;
#endif
  }
  return false;
}

// All that the flags of that level in CMakeLists.txt let the compiler use. __builtin_cpu_supports
// also asks the operating system whether it saves the wider registers.
bool machine_has(Capability capability) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  switch (capability) {
    case Capability::Default:
      return true;
    case Capability::AVX2:
      return avx2;
    case Capability::AVX512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return capability == Capability::Default;
#endif
}

bool is_supported(Capability capability) {
  return is_compiled(capability) && machine_has(capability);
}

template <class Predicate>
std::vector<std::string> names_where(Predicate predicate) {
  std::vector<std::string> names;
  for (Capability capability : kAll) {
    if (predicate(capability)) names.emplace_back(name(capability));
  }
  return names;
}

std::atomic<bool> slow_bf16_denied{false};

bool is_zen4() {
#if defined(__x86_64__) || defined(__i386__)
  static const bool zen4 = [] {
    __builtin_cpu_init();
    unsigned version = 0, b, c, d;
    if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &version, &b, &c, &d)) return false;
    // The family is the sum of two fields. Zen 3 has the same, and neither the vectors nor the
    // cache for which it matters.
    return (version >> 8 & 0xf) + (version >> 20 & 0xff) == 0x19;
  }();
  return zen4;
#else
  return false;
#endif
}

Capability highest() {
  Capability best = Capability::Default;
  for (Capability capability : kAll) {
    if (is_supported(capability)) best = capability;
  }
  return best;
}

std::atomic<Capability>& in_use() {
  static std::atomic<Capability> capability{highest()};
  return capability;
}

}  // namespace

const char* name(Capability capability) {
  switch (capability) {
    case Capability::Default:
      return "default";
    case Capability::AVX2:
      return "avx2";
    case Capability::AVX512:
      return "avx512";
  }
  return "unknown";
}

std::vector<std::string> compiled() { return names_where(is_compiled); }

std::vector<std::string> supported() { return names_where(is_supported); }

Capability current() { return in_use().load(std::memory_order_relaxed); }

void set_current(const std::string& wanted) {
  for (Capability capability : kAll) {
    if (wanted == name(capability) && is_supported(capability)) {
      in_use().store(capability, std::memory_order_relaxed);
      return;
    }
  }
  std::string levels;
  for (const std::string& level : supported()) levels += (levels.empty() ? "" : ", ") + level;
  throw std::runtime_error(
      "CPU capability must be one of those that this build and this machine have (" + levels +
      "), got '" + wanted + "'");
}

const KernelTable& kernels() {
  switch (current()) {
#ifdef SEQKERN_COMPILED_AVX512
    case Capability::AVX512:
      return AVX512::table();
#endif
#ifdef SEQKERN_COMPILED_AVX2
    case Capability::AVX2:
      return AVX2::table();
#endif
    default:
      return DEFAULT::table();
  }
}

const LayerKernels<Bf16>* bf16_kernels() {
#ifdef SEQKERN_COMPILED_AVX512_BF16
  static const bool there = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") > 0;
  }();
  if (there && current() == Capability::AVX512) return &AVX512_BF16::bf16_table();
#endif
  return nullptr;
}

int64_t cache_bytes() {
  static const int64_t bytes = [] {
    int64_t found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? found : int64_t(512) << 10;
  }();
  return bytes;
}

PlainRows plain_rows() {
  if (is_zen4()) return PlainRows::Several;
  // With 1 MiB of second-level cache or more, less than 2.
  return cache_bytes() >> 20 == 1 ? PlainRows::Single : PlainRows::Slow;
}

bool kept_weights_pay(int64_t rows) { return rows == 1 || !is_zen4(); }

void deny_slow_bf16(bool deny) { slow_bf16_denied = deny; }

bool bf16_is_slow() {
  if (slow_bf16_denied) return false;
#if defined(__x86_64__) || defined(__i386__)
  static const bool intel = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") > 0;
  }();
  return intel;
#else
  return false;
#endif
}

}  // namespace seqkern::cpu
