// Sweeps the vector functions against long double and holds them to the figures stated in
// csrc/cpu/vec.h. Prints the worst error of each; exit status 1 where a figure is exceeded.
//   test_vec [number of samples per function]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "cpu/vec.h"

using namespace seqkern::cpu::SEQKERN_CAPABILITY;

namespace {

int failures = 0;

struct Exp {
  static constexpr const char* name = "exp";
  template <class T>
  static Vec<T> vector(Vec<T> x) {
    return Math<T>::exp(x);
  }
  static long double exact(long double x) { return std::exp(x); }
};

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  template <class T>
  static Vec<T> vector(Vec<T> x) {
    return Math<T>::sigmoid(x);
  }
  static long double exact(long double x) { return 1 / (1 + std::exp(-x)); }
};

struct Tanh {
  static constexpr const char* name = "tanh";
  template <class T>
  static Vec<T> vector(Vec<T> x) {
    return Math<T>::tanh(x);
  }
  static long double exact(long double x) { return std::tanh(x); }
};

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// Units in the last place of `exact` between it and `got`; 0 where `exact` is not a normal number
// and `got` is as close to it as the contract asks (0 below, inf above).
template <class T>
long double ulps(T got, long double exact) {
  const long double smallest = std::numeric_limits<T>::min();
  const long double largest = std::numeric_limits<T>::max();
  // Results up to a factor of two inside the range may already be 0 or inf.
  if (std::fabs(exact) < 2 * smallest) return std::fabs(got) <= 2 * smallest ? 0 : INFINITY;
  if (std::fabs(exact) > largest / 2) return got > largest / 4 ? 0 : INFINITY;
  int exponent;
  std::frexp(exact, &exponent);
  return std::fabs(got - exact) / std::ldexp(1.0L, exponent - std::numeric_limits<T>::digits);
}

template <class F, class T>
void sweep(int64_t samples, long double allowed) {
  constexpr int kLanes = Simd<T>::kLanes;
  const Bits<T> stride = std::numeric_limits<Bits<T>>::max() / Bits<T>(samples) | 1;
  long double worst = 0;
  T worst_at = 0;
  T in[kLanes], out[kLanes];
  Bits<T> pattern = 0;
  for (int64_t i = 0; i < samples; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane, pattern += stride) {
      // Every other sample is uniform over [-30, 30], where gates live; the rest are bit patterns
      // over the whole of the type: NaN, infinities and subnormals with them.
      if (lane % 2) {
        in[lane] = T(60.0L * pattern / std::numeric_limits<Bits<T>>::max() - 30);
      } else {
        std::memcpy(&in[lane], &pattern, sizeof(T));
      }
    }
    store<T>(out, F::template vector<T>(load<T>(in)));
    for (int lane = 0; lane < kLanes; ++lane) {
      if (std::isnan(in[lane])) {
        if (!std::isnan(out[lane])) worst = INFINITY, worst_at = in[lane];
        continue;
      }
      const long double error = ulps(out[lane], F::exact(in[lane]));
      if (!(error <= worst)) worst = error, worst_at = in[lane];
    }
  }
  const bool good = worst <= allowed;
  failures += !good;
  std::printf("%s %-8s %s: %.2Lf ulp at %.9g (allowed %.3Lg)\n", good ? "ok  " : "FAIL", F::name,
              sizeof(T) == 4 ? "float " : "double", worst, double(worst_at), allowed);
}

template <class F, class T>
void expect(T x, T y) {
  const T out = F::template vector<T>(broadcast<T>(x))[0];
  if (out == y || (std::isnan(out) && std::isnan(y))) return;
  ++failures;
  std::printf("FAIL %s(%g) = %.9g, expected %.9g\n", F::name, double(x), double(out), double(y));
}

template <class T>
void limits() {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  expect<Exp, T>(-inf, 0), expect<Exp, T>(inf, inf), expect<Exp, T>(0, 1), expect<Exp, T>(nan, nan);
  expect<Sigmoid, T>(-inf, 0), expect<Sigmoid, T>(inf, 1), expect<Sigmoid, T>(0, T(0.5));
  expect<Sigmoid, T>(nan, nan);
  expect<Tanh, T>(-inf, -1), expect<Tanh, T>(inf, 1), expect<Tanh, T>(0, 0),
      expect<Tanh, T>(nan, nan);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t samples = argc > 1 ? std::atoll(argv[1]) : 1 << 22;
  if (samples < 1024) {
    std::fprintf(stderr, "test_vec: number of samples must be at least 1024, got %s\n", argv[1]);
    return 2;
  }
  sweep<Exp, float>(samples, 2), sweep<Exp, double>(samples, 2);
  sweep<Sigmoid, float>(samples, 3), sweep<Sigmoid, double>(samples, 3);
  sweep<Tanh, float>(samples, 1.25), sweep<Tanh, double>(samples, 3);
  limits<float>();
  limits<double>();
  return failures != 0;
}
