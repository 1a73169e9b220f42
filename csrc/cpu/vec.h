// Native SIMD vectors of the capability this file is compiled for, and the functions the cells
// need on them. GCC's and Clang's vector extensions instead of intrinsics: one source for every
// level, FMA by contraction (-ffp-contract=fast), accumulators that stay in registers.
//
// Contracts (swept by tests/cpp/test_vec.cpp, every level):
//   function   valid for            maximum error, float / double
//   exp        all of IEEE          2 ulp / 2 ulp where the result is normal; below that 0, and
//                                   from 88.38 (709.44) on inf
//   sigmoid    all of IEEE          3 ulp / 3 ulp where the result is normal
//   tanh       all of IEEE          1.25 ulp / 3 ulp
// NaN gives NaN.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/kernels.h"

#if defined(__AVX512F__)
#include <immintrin.h>

#include "cpu/vec_tables.h"
#endif

#ifndef SEQKERN_CAPABILITY
#error "compile with -DSEQKERN_CAPABILITY=DEFAULT, AVX2, AVX512 or AVX512_BF16"
#endif

#define SEQKERN_INLINE inline __attribute__((always_inline))

namespace seqkern::cpu::SEQKERN_CAPABILITY {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int kLanes = kVectorBytes / 4;
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t Bits;
  typedef Bits U __attribute__((vector_size(kVectorBytes)));
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2Hi = 6.93145751953125e-1f, kLn2Lo = 1.42860682030941723e-6f;
  // 1.5 * 2^23: adding it leaves round(x) in the low bits.
  static constexpr float kRound = 12582912.f;
  static constexpr int kMantissa = 23;
  static constexpr uint32_t kOneBits = 0x3f800000u;
  // n = round(x / ln 2) from -127 (scale 0) to 128 (scale inf).
  static constexpr float kExpMin = -88.f, kExpMax = 89.f;
  static constexpr float kHalfLn2 = 0.34657359027997265f;
  static constexpr float kTanhMax = 9.1f;  // tanh rounds to 1 from 9.02 on
  // (tanh(x) / x - 1) / x^2 in powers of x^2, |x| < kTanhSplit, minimax: 3.7e-9 of tanh x.
  static constexpr float kTanhSplit = 0.8f;
  static constexpr int kTanhDegree = 5;
  static constexpr float kTanhPoly[kTanhDegree + 1] = {
      -0.333332986f, 0.133322209f, -0.0538523309f, 0.0213029906f, -0.0074095577f, 0.0015847563f};
  // (e^r - 1 - r) / r^2 on |r| <= ln(2)/2, interpolated at Chebyshev nodes: 2.5e-8 of e^r - 1.
  static constexpr int kDegree = 4;
  static constexpr float kPoly[kDegree + 1] = {0.5f, 0.166665763f, 0.0416665561f, 0.00836320315f,
                                               0.00139262131f};
};

template <>
struct Simd<double> {
  static constexpr int kLanes = kVectorBytes / 8;
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef uint64_t Bits;
  typedef Bits U __attribute__((vector_size(kVectorBytes)));
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kLn2Hi = 6.93147180369123816490e-1, kLn2Lo = 1.90821492927058770002e-10;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr int kMantissa = 52;
  static constexpr uint64_t kOneBits = 0x3ff0000000000000ull;
  static constexpr double kExpMin = -709.0, kExpMax = 709.8;
  static constexpr double kTanhMax = 19.1;
  // As above: 5.5e-19 of e^r - 1.
  static constexpr int kDegree = 10;
  static constexpr double kPoly[kDegree + 1] = {
      0.5,
      0.16666666666666671,
      0.041666666666666671,
      0.0083333333333261116,
      0.0013888888888883731,
      0.00019841269874901259,
      2.4801587325605324e-05,
      2.7557255297969643e-06,
      2.755727357010214e-07,
      2.5105259538448494e-08,
      2.0914717341716378e-09,
  };
};

// Two elements of bfloat16.
template <>
struct Simd<uint32_t> {
  static constexpr int kLanes = kVectorBytes / 4;
  typedef uint32_t V __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vec = typename Simd<T>::V;

template <class T>
SEQKERN_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
SEQKERN_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

inline constexpr int kRegisters = kVectorBytes == 64 ? 32 : 16;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
inline constexpr bool kHasFma = true;
#else
inline constexpr bool kHasFma = false;
#endif

// Keeps what was loaded in a register. GCC folds a load with two or three uses into the
// instructions that use it, so that it is made as often.
template <class V>
SEQKERN_INLINE void keep(V& v) {
#if defined(__x86_64__) || defined(__i386__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

// x - 0 is x for every x, -0 included, so that no addition is left of it.
template <class T>
SEQKERN_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

#if defined(__AVX512BF16__)

typedef uint16_t Bf16Bits __attribute__((vector_size(kVectorBytes / 2)));

template <class T>
SEQKERN_INLINE Vec<float> load(const Bf16* p) {
  static_assert(std::is_same_v<T, float>);
  Bf16Bits bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Vec<float>)(__builtin_convertvector(bits, Vec<uint32_t>) << 16);
}

template <class T>
SEQKERN_INLINE void store(Bf16* p, Vec<float> v) {
  const auto bits = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &bits, sizeof bits);
}

// sum + x w for both elements of each lane.
SEQKERN_INLINE Vec<float> multiply_add(Vec<uint32_t> x, Vec<uint32_t> w, Vec<float> sum) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
}

#endif

// The first n lanes; the others are zero. P is T, or what T is stored as.
#if defined(__AVX512F__)
// By masks. What is masked out is not touched: it may lie beyond the end of memory.
SEQKERN_INLINE __mmask16 first_lanes(int64_t n) { return __mmask16((1u << n) - 1); }

template <class T, class P>
SEQKERN_INLINE Vec<T> load(const P* p, int64_t n) {
  const __mmask16 mask = first_lanes(n);
  if constexpr (sizeof(P) == 4) return (Vec<T>)_mm512_maskz_loadu_epi32(mask, p);
  if constexpr (sizeof(P) == 8) return (Vec<T>)_mm512_maskz_loadu_epi64(__mmask8(mask), p);
  if constexpr (sizeof(P) == 2) {
    const __m256i lanes = _mm256_maskz_loadu_epi16(mask, p);
    return load<T>(reinterpret_cast<const P*>(&lanes));
  }
}

template <class T, class P>
SEQKERN_INLINE void store(P* p, Vec<T> v, int64_t n) {
  const __mmask16 mask = first_lanes(n);
  if constexpr (sizeof(P) == 4) _mm512_mask_storeu_epi32(p, mask, (__m512i)v);
  if constexpr (sizeof(P) == 8) _mm512_mask_storeu_epi64(p, __mmask8(mask), (__m512i)v);
  if constexpr (sizeof(P) == 2) {
    __m256i lanes;
    store<T>(reinterpret_cast<P*>(&lanes), v);
    _mm256_mask_storeu_epi16(p, mask, lanes);
  }
}
#else
template <class T, class P>
SEQKERN_INLINE Vec<T> load(const P* p, int64_t n) {
  alignas(kVectorBytes) P lanes[Simd<T>::kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load<T>(lanes);
}

template <class T, class P>
SEQKERN_INLINE void store(P* p, Vec<T> v, int64_t n) {
  alignas(kVectorBytes) P lanes[Simd<T>::kLanes];
  store<T>(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
#endif

// A whole vector, or its first lanes.
template <class T, bool Full>
struct Access {
  int64_t n;  // lanes in use, where not Full
  template <class P>
  SEQKERN_INLINE Vec<T> get(const P* p) const {
    if constexpr (Full) return load<T>(p);
    return load<T>(p, n);
  }
  template <class P>
  SEQKERN_INLINE void put(P* p, Vec<T> v) const {
    if constexpr (Full) {
      store<T>(p, v);
    } else {
      store<T>(p, v, n);
    }
  }
};

// Calls f(j, access) for each vector of the elements [begin, end), from the j-th on.
template <class T, class F>
SEQKERN_INLINE void for_vectors(int64_t begin, int64_t end, F&& f) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) f(j, Access<T, true>{kLanes});
  if (j < end) f(j, Access<T, false>{end - j});
}

// x, or the bound where x lies beyond it; NaN stays.
#if defined(__AVX512F__)
// One instruction, which returns its second operand where either is NaN: of the comparisons below
// GCC makes two for 512 bits.
SEQKERN_INLINE Vec<float> at_least(float bound, Vec<float> x) {
  return (Vec<float>)_mm512_maskz_max_ps(__mmask16(-1), (__m512)broadcast(bound), (__m512)x);
}
SEQKERN_INLINE Vec<float> at_most(float bound, Vec<float> x) {
  return (Vec<float>)_mm512_maskz_min_ps(__mmask16(-1), (__m512)broadcast(bound), (__m512)x);
}
SEQKERN_INLINE Vec<double> at_least(double bound, Vec<double> x) {
  return (Vec<double>)_mm512_maskz_max_pd(__mmask8(-1), (__m512d)broadcast(bound), (__m512d)x);
}
SEQKERN_INLINE Vec<double> at_most(double bound, Vec<double> x) {
  return (Vec<double>)_mm512_maskz_min_pd(__mmask8(-1), (__m512d)broadcast(bound), (__m512d)x);
}
#else
template <class T>
SEQKERN_INLINE Vec<T> at_least(T bound, Vec<T> x) {
  const Vec<T> b = broadcast(bound);
  return x < b ? b : x;
}
template <class T>
SEQKERN_INLINE Vec<T> at_most(T bound, Vec<T> x) {
  const Vec<T> b = broadcast(bound);
  return x > b ? b : x;
}
#endif

// The first, or the last, halves of two vectors.
template <class T>
SEQKERN_INLINE Vec<T> first_halves(Vec<T> a, Vec<T> b) {
  constexpr int kLanes = Simd<T>::kLanes, kHalf = kLanes / 2;
  return [&]<int... Lane>(std::integer_sequence<int, Lane...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, (Lane < kHalf ? Lane : kHalf + Lane)...);
  }(std::make_integer_sequence<int, kLanes>());
}
template <class T>
SEQKERN_INLINE Vec<T> last_halves(Vec<T> a, Vec<T> b) {
  constexpr int kLanes = Simd<T>::kLanes, kHalf = kLanes / 2;
  return [&]<int... Lane>(std::integer_sequence<int, Lane...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(a, b, (Lane < kHalf ? kHalf + Lane : kLanes + Lane)...);
  }(std::make_integer_sequence<int, kLanes>());
}

// Transposes the square of lanes that the vectors are, by exchanging blocks of 1, 2, 4, ... lanes.
template <class T>
SEQKERN_INLINE void transpose(Vec<T> (&row)[Simd<T>::kLanes]) {
  constexpr int kLanes = Simd<T>::kLanes;
  const auto exchange = [&]<int Block, int... Lane>(
                            std::integral_constant<int, Block>,
                            std::integer_sequence<int, Lane...>) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & Block) continue;
      const Vec<T> a = row[i], b = row[i + Block];
      row[i] = __builtin_shufflevector(a, b, (Lane & Block ? kLanes + Lane - Block : Lane)...);
      row[i + Block] =
          __builtin_shufflevector(a, b, (Lane & Block ? kLanes + Lane : Lane + Block)...);
    }
  };
  constexpr std::make_integer_sequence<int, kLanes> kAll;
  exchange(std::integral_constant<int, 1>(), kAll);
  if constexpr (kLanes > 2) exchange(std::integral_constant<int, 2>(), kAll);
  if constexpr (kLanes > 4) exchange(std::integral_constant<int, 4>(), kAll);
  if constexpr (kLanes > 8) exchange(std::integral_constant<int, 8>(), kAll);
}

template <class T>
struct Math {
  using S = Simd<T>;
  using V = typename S::V;
  using U = typename S::U;

  struct Reduced {
    V expm1;  // e^r - 1
    V scale;  // 2^n
    SEQKERN_INLINE V exp() const { return (expm1 + 1) * scale; }
  };

  // e^x = 2^n e^r with |r| <= ln(2)/2, for x within [kExpMin, kExpMax] or NaN.
  static SEQKERN_INLINE Reduced reduce(V x) {
    const V shifted = x * S::kLog2e + S::kRound;
    const V n = shifted - S::kRound;
    const V r = (x - n * S::kLn2Hi) - n * S::kLn2Lo;
    V q = broadcast<T>(S::kPoly[S::kDegree]);
#pragma GCC unroll 16
    for (int i = S::kDegree - 1; i >= 0; --i) q = q * r + S::kPoly[i];
    return {r + (r * r) * q, power_of_2(shifted)};
  }

  // 2^n of n + kRound, whose low bits are n in two's complement; its high bits leave by the shift.
  static SEQKERN_INLINE V power_of_2(V shifted) {
    return (V)(((U)shifted << S::kMantissa) + S::kOneBits);
  }

  static SEQKERN_INLINE V clamp(V x, T lo, T hi) { return at_most(hi, at_least(lo, x)); }

  static SEQKERN_INLINE V exp(V x) { return reduce(clamp(x, S::kExpMin, S::kExpMax)).exp(); }

  // By tables, where a permutation looks something up in each lane.
  static constexpr bool kLooksUp = sizeof(T) == 4 && kVectorBytes == 64;

  // The sign is part of the multiply-adds after the clamp.
  static SEQKERN_INLINE V sigmoid(V x)
    requires(!kLooksUp)
  {
    return 1 / (1 + reduce(-clamp(x, -S::kExpMax, -S::kExpMin)).exp());
  }

  // float, the dtype that trains: errors of tanh build up along a sequence, so it is nearly
  // correctly rounded. A polynomial near 0; beyond it 1 - 2 / (e^{2|x|} + 1), where the correction
  // to 1, and so its error, is small: e^{2r} may be a plain polynomial, and ln(2)/2 one number
  // where its multiple is not rounded before the subtraction.
  static SEQKERN_INLINE V tanh(V x)
    requires(sizeof(T) == 4 && !kLooksUp)
  {
    const U sign = (U)x & (U(broadcast<T>(-T(0))));
    const V a = (V)((U)x ^ sign), z = x * x;
    V p = broadcast<T>(S::kTanhPoly[S::kTanhDegree]);
#pragma GCC unroll 16
    for (int i = S::kTanhDegree - 1; i >= 0; --i) p = p * z + S::kTanhPoly[i];
    const V near = x + x * (z * p);
    const V y = at_most(S::kTanhMax, a);
    const V shifted = y * (2 * S::kLog2e) + S::kRound;
    const V n = shifted - S::kRound;
    const V r = kHasFma ? y - n * S::kHalfLn2 : (y - n * (S::kLn2Hi / 2)) - n * (S::kLn2Lo / 2);
    V q = broadcast<T>(S::kPoly[S::kDegree] * (4 << S::kDegree));
#pragma GCC unroll 16
    for (int i = S::kDegree - 1; i >= 0; --i) q = q * r + S::kPoly[i] * (4 << i);
    const V e = (q * r + 2) * r + 1;
    const V far = 1 - 2 / (e * power_of_2(shifted) + 1);
    return a < S::kTanhSplit ? near : (V)((U)far | sign);
  }

  // double: with m = e^{2x} - 1, which keeps its relative accuracy near 0, tanh x = m / (m + 2).
  static SEQKERN_INLINE V tanh(V x)
    requires(sizeof(T) == 8)
  {
    const V y = clamp(x, -S::kTanhMax, S::kTanhMax);
    const Reduced e = reduce(y + y);
    const V m = e.scale * e.expm1 + (e.scale - 1);
    return m / (m + 2);
  }

#if defined(__AVX512F__)
  static SEQKERN_INLINE V fma(V a, V b, V c)
    requires(kLooksUp)
  {
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  }

  // e^-x = 2^(n / 16) e^r with |r| <= ln(2)/32, so that three terms of e^r are enough. Below kLeast
  // the result, no normal number, is 0.
  static SEQKERN_INLINE V sigmoid(V x)
    requires(kLooksUp)
  {
    constexpr float kLeast = -87, kMost = 87;
    const __mmask16 some = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(kLeast), _CMP_NLT_UQ);
    const V y = at_most(kMost, x);
    const V shifted = y * (-16 * S::kLog2e) + S::kRound;
    const V n = shifted - S::kRound;
    const V r = (-y - n * (S::kLn2Hi / 16)) - n * (S::kLn2Lo / 16);
    const __m512i j = (__m512i)shifted;  // the last four bits
    const V root = (V)_mm512_maskz_permutexvar_ps(__mmask16(-1), j, _mm512_load_ps(kRoot)),
            rest = (V)_mm512_maskz_permutexvar_ps(__mmask16(-1), j, _mm512_load_ps(kRootRest));
    const V power = (V)((U)root + (((U)shifted >> 4) << S::kMantissa));
    const V q = fma(r, fma(r, broadcast<T>(T(1) / 6), broadcast<T>(T(0.5))), broadcast<T>(1));
    const V e = fma(power, fma(r, q, rest), power);
    return (V)_mm512_maskz_div_ps(some, _mm512_set1_ps(1), (__m512)(1 + e));
  }

  // A polynomial in each of 32 intervals, without a division. (The compiler does not fuse an
  // addition of what it permutes with the product before it.)
  static SEQKERN_INLINE V tanh(V x)
    requires(kLooksUp)
  {
    const __m512i minus_zero = _mm512_set1_epi32(INT32_MIN);
    const V y = at_most(S::kTanhMax, (V)((U)x & ~(U)minus_zero));
    const __m512i interval = (__m512i)((U)at_least(kTanhLeast, y) >> 21);  // the last five bits
    const auto look_up = [&](const float* table) __attribute__((always_inline)) {
      return (V)_mm512_permutex2var_ps(_mm512_load_ps(table), interval, _mm512_load_ps(table + 16));
    };
    const V d = y - look_up(kTanhCentre);
    V q = look_up(kTanhSlope[kTanhSlopes - 1]);
#pragma GCC unroll 16
    for (int i = kTanhSlopes - 2; i >= 0; --i) q = fma(q, d, look_up(kTanhSlope[i]));
    const V magnitude = fma(q, d, look_up(kTanhValue));
    constexpr int kAOrBAndC = 0xf8;
    return (V)_mm512_ternarylogic_epi32((__m512i)magnitude, (__m512i)x, minus_zero, kAOrBAndC);
  }
#endif
};

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
