// Devices for tests and tables, from NVIDIA's data sheets and the CUDA C++ Programming Guide's
// table of technical specifications.
#pragma once

#include "cuda/device.h"

namespace seqkern::cuda {

struct Gpu {
  const char* name;
  DeviceProperties properties;
};

inline constexpr int64_t KiB = 1024, MiB = 1024 * KiB;
// capability, multiprocessors, per multiprocessor: threads, blocks, registers, shared memory; per
// block: shared memory, the same opted in; L2; cooperative launches.
inline constexpr Gpu kT4{"T4",
                         {7, 5, 40, 1024, 16, 65536, 64 * KiB, 48 * KiB, 64 * KiB, 4 * MiB, true}};
inline constexpr Gpu kA100{
    "A100", {8, 0, 108, 2048, 32, 65536, 164 * KiB, 48 * KiB, 163 * KiB, 40 * MiB, true}};
inline constexpr Gpu kRtx4090{
    "RTX 4090", {8, 9, 128, 1536, 24, 65536, 100 * KiB, 48 * KiB, 99 * KiB, 72 * MiB, true}};
inline constexpr Gpu kH100{
    "H100", {9, 0, 132, 2048, 32, 65536, 228 * KiB, 48 * KiB, 227 * KiB, 50 * MiB, true}};
inline constexpr Gpu kB200{
    "B200", {10, 0, 148, 2048, 32, 65536, 228 * KiB, 48 * KiB, 227 * KiB, 126 * MiB, true}};
inline constexpr Gpu kRtx5090{
    "RTX 5090", {12, 0, 170, 1536, 24, 65536, 100 * KiB, 48 * KiB, 99 * KiB, 96 * MiB, true}};
inline constexpr Gpu kGpus[] = {kT4, kA100, kRtx4090, kH100, kB200, kRtx5090};

}  // namespace seqkern::cuda
