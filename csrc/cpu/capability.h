// Which of the compiled SIMD levels this machine has, which one is in use, and what else of its
// cores is to be known.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace seqkern::cpu {

// In rising order. A level's name in code and flags is its lower case to users: "default", "avx2",
// "avx512".
enum class Capability { Default, AVX2, AVX512 };

struct Bf16;  // csrc/cpu/kernels.h
struct KernelTable;
template <typename T>
struct LayerKernels;

const char* name(Capability capability);

// Levels in this build, and those of them that this machine can run; lowest first.
std::vector<std::string> compiled();
std::vector<std::string> supported();

// The level in use: the highest supported one until set_current chooses another. Reading and
// setting are atomic; a layer that is running keeps the level that it started with.
Capability current();

// Throws std::runtime_error, which lists what there is, for a level that is unknown, not compiled
// or not supported here.
void set_current(const std::string& wanted);

// The kernels of the level in use.
const KernelTable& kernels();

// Those for bfloat16, where that level and the processor have instructions for it; else null.
const LayerKernels<Bf16>* bf16_kernels();

// Whether those multiply at half the rate of float32, as Intel's processors do without AMX (a
// multiply-add of 32 elements in two cycles, beside two of 16 in one), and not at twice that rate.
bool bf16_is_slow();
// For tests: it says no, so that every layer that can be is multiplied in pairs.
void deny_slow_bf16(bool deny);

// Bytes of a core's second-level cache; 512 KiB where the system does not say.
int64_t cache_bytes();

// Whether steps of so many rows gain from weights that this cache has kept from the step before: on
// Zen 4 one row alone, as the third-level cache delivers nearly as fast there, and slower what is
// fetched ahead.
bool kept_weights_pay(int64_t rows);

// How rows of weights as they lie come here: slowly beside packed ones; several at once, each asked
// for ahead, nearly as fast (Zen 4); or one after the other in a single stream, up to twice as fast
// as several (Zen 5).
enum class PlainRows { Slow, Several, Single };
PlainRows plain_rows();

}  // namespace seqkern::cpu
