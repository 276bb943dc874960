// The types __half and __nv_bfloat16. Every operation is computed in f32 and rounded to the nearest value, ties to the even one.
#pragma once

#include "cuda_runtime.h"

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

struct HalfFormat {
  static uint16_t round(float value) {
    uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) {
      return sign | 0x7fff;
    }
    if (magnitude >= 0x477ff000) { // 65,520 and more round to infinity
      return sign | 0x7c00;
    }
    if (magnitude < 0x38800000) { // subnormal: a multiple of 2^-24, rounded by the CPU
      return sign | uint16_t(nearbyintf(float_of(magnitude) * 16777216.0f));
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | uint16_t((rounded - 0x38000000) >> 13);
  }
  static float widen(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) {
      return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    }
    if (magnitude < 0x400) {
      float value = float(magnitude) * (1.0f / 16777216.0f);
      return sign ? -value : value;
    }
    return float_of(sign | ((magnitude << 13) + 0x38000000));
  }
};

struct BfloatFormat {
  static uint16_t round(float value) {
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
      return 0x7fff;
    }
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static float widen(uint16_t bits) { return float_of(uint32_t(bits) << 16); }
};

// A number of 16 bits.
template <class Format>
struct Short {
  uint16_t bits;

  Short() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  Short(T value) : bits(Format::round(float(value))) {}
  template <class Other>
  explicit Short(Short<Other> value) : Short(float(value)) {}
  operator float() const { return Format::widen(bits); }
  Short operator-() const {
    Short negated = *this;
    negated.bits ^= 0x8000;
    return negated;
  }
  friend Short operator+(Short a, Short b) { return float(a) + float(b); }
  friend Short operator-(Short a, Short b) { return float(a) - float(b); }
  friend Short operator*(Short a, Short b) { return float(a) * float(b); }
  friend Short operator/(Short a, Short b) { return float(a) / float(b); }
  friend bool operator==(Short a, Short b) { return float(a) == float(b); }
  friend bool operator!=(Short a, Short b) { return float(a) != float(b); }
  friend bool operator<(Short a, Short b) { return float(a) < float(b); }
  friend bool operator<=(Short a, Short b) { return float(a) <= float(b); }
  friend bool operator>(Short a, Short b) { return float(a) > float(b); }
  friend bool operator>=(Short a, Short b) { return float(a) >= float(b); }
  Short &operator+=(Short other) { return *this = *this + other; }
  Short &operator-=(Short other) { return *this = *this - other; }
  Short &operator*=(Short other) { return *this = *this * other; }
};

// Two of them.
template <class Format>
struct alignas(4) ShortPair {
  Short<Format> x, y;

  ShortPair() = default;
  ShortPair(Short<Format> x, Short<Format> y) : x(x), y(y) {}
  friend ShortPair operator+(ShortPair a, ShortPair b) { return {a.x + b.x, a.y + b.y}; }
  friend ShortPair operator-(ShortPair a, ShortPair b) { return {a.x - b.x, a.y - b.y}; }
  friend ShortPair operator*(ShortPair a, ShortPair b) { return {a.x * b.x, a.y * b.y}; }
  friend ShortPair operator/(ShortPair a, ShortPair b) { return {a.x / b.x, a.y / b.y}; }
  ShortPair operator-() const { return {-x, -y}; }
};

using __half = Short<HalfFormat>;
using __half2 = ShortPair<HalfFormat>;
using __nv_bfloat16 = Short<BfloatFormat>;
using __nv_bfloat162 = ShortPair<BfloatFormat>;

#define DEFINE_FUNCTION(name, function)                                                  \
  template <class F>                                                                     \
  Short<F> h##name(Short<F> x) {                                                         \
    return function(float(x));                                                           \
  }                                                                                      \
  template <class F>                                                                     \
  ShortPair<F> h2##name(ShortPair<F> x) {                                                \
    return {h##name(x.x), h##name(x.y)};                                                 \
  }
DEFINE_FUNCTION(exp, expf)
DEFINE_FUNCTION(log, logf)
DEFINE_FUNCTION(sin, sinf)
DEFINE_FUNCTION(cos, cosf)
DEFINE_FUNCTION(sqrt, sqrtf)
DEFINE_FUNCTION(rsqrt, rsqrt)
DEFINE_FUNCTION(ceil, ceilf)
DEFINE_FUNCTION(floor, floorf)
DEFINE_FUNCTION(trunc, truncf)
DEFINE_FUNCTION(rint, rintf)
DEFINE_FUNCTION(tanh, tanhf)
#undef DEFINE_FUNCTION

template <class F>
Short<F> __hmax(Short<F> a, Short<F> b) {
  return max(float(a), float(b));
}
template <class F>
Short<F> __hmin(Short<F> a, Short<F> b) {
  return min(float(a), float(b));
}
template <class F>
ShortPair<F> __hmax2(ShortPair<F> a, ShortPair<F> b) {
  return {__hmax(a.x, b.x), __hmax(a.y, b.y)};
}
template <class F>
ShortPair<F> __hmin2(ShortPair<F> a, ShortPair<F> b) {
  return {__hmin(a.x, b.x), __hmin(a.y, b.y)};
}
template <class F>
Short<F> __hfma(Short<F> a, Short<F> b, Short<F> c) {
  return fmaf(a, b, c);
}
template <class F>
ShortPair<F> __hfma2(ShortPair<F> a, ShortPair<F> b, ShortPair<F> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class F>
bool __hisnan(Short<F> x) {
  return isnan(float(x));
}
template <class F>
bool __hisinf(Short<F> x) {
  return isinf(float(x));
}
