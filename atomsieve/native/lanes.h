// Vectors of one machine register: loads, sums, and an exponential good to a few units in the last place.
//
// Include this after the standard headers: from here on sums keep the order in which they are written, which the
// exponential relies on, while everything that should run in lanes says so by its types.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-associative-math")
#endif

namespace lanes {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif

template <class T> struct Lanes {
    typedef T V __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
    static constexpr int n = kBytes / sizeof(T);
};

template <class T> inline typename Lanes<T>::V load(const T *p) { return *reinterpret_cast<const typename Lanes<T>::V *>(p); }
template <class T> inline void store(T *p, typename Lanes<T>::V v) { *reinterpret_cast<typename Lanes<T>::V *>(p) = v; }
// Half to half, as registers are added up fastest.
template <class T> inline T sum(typename Lanes<T>::V v) {
    T part[Lanes<T>::n];
    std::memcpy(part, &v, sizeof(v));
    for (int half = Lanes<T>::n / 2; half; half /= 2)
        for (int k = 0; k < half; ++k) part[k] += part[k + half];
    return part[0];
}

// exp(x) = 2^k exp(r), |r| <= ln(2)/2, with k taken off the low bits of a sum with a large number, and the Taylor series of exp(r).
inline Lanes<double>::V exponential(Lanes<double>::V x) {
    using V = Lanes<double>::V;
    typedef int64_t I __attribute__((vector_size(kBytes)));
    x = x > 708.0 ? V{} + 708.0 : x;
    x = x < -708.0 ? V{} - 708.0 : x;
    const V shifted = x * 1.4426950408889634074 + 0x1.8p52, k = shifted - 0x1.8p52;
    const V r = (x - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
    V p = V{} + 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    return p * (V)(((I)shifted << 52) + ((I{} + 1023) << 52));
}

inline Lanes<float>::V exponential(Lanes<float>::V x) {
    using V = Lanes<float>::V;
    typedef int32_t I __attribute__((vector_size(kBytes)));
    x = x > 87.0f ? V{} + 87.0f : x;
    x = x < -87.0f ? V{} - 87.0f : x;
    const V shifted = x * 1.44269504f + 0x1.8p23f, k = shifted - 0x1.8p23f;
    const V r = (x - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f;
    V p = V{} + 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (V)(((I)shifted << 23) + ((I{} + 127) << 23));
}

}  // namespace lanes
