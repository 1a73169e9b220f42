// What the tests of kernels on random numbers share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using Doubles = std::vector<double>;

class Random {
 public:
  int64_t pick(int64_t from, int64_t to) {
    return std::uniform_int_distribution<int64_t>(from, to)(engine_);
  }
  // Multiples of 1/1024, which are the same number in float and in double.
  Doubles values(int64_t n, double scale) {
    Doubles v(n);
    for (double& e : v)
      e = std::round(std::normal_distribution<double>(0, scale)(engine_) * 1024) / 1024;
    return v;
  }

 private:
  std::mt19937 engine_{1};
};

// How far numbers are from the exact ones, and the norm of these.
struct Error {
  double difference = 0, norm = 0;

  Error(const Doubles& got, const Doubles& exact) {
    for (size_t i = 0; i < exact.size(); ++i) {
      difference += (got[i] - exact[i]) * (got[i] - exact[i]);
      norm += exact[i] * exact[i];
    }
    difference = std::sqrt(difference), norm = std::sqrt(norm);
  }
  bool within(double allowed) const { return difference <= allowed * norm; }
  double relative() const { return difference / norm; }
};

// A program's only argument: how many to test.
inline int count_argument(int argc, char** argv, int otherwise) {
  const int n = argc > 1 ? std::atoi(argv[1]) : otherwise;
  if (n < 1) {
    std::fprintf(stderr, "%s: the number must be positive, got %s\n", argv[0], argv[1]);
    std::exit(2);
  }
  return n;
}
