// What the steps of PaiNN at single atoms share: rows of channels, and left and right of an atom's mixed vectors.
#pragma once
#include <cmath>
#include <cstdint>

#include "lanes.h"

namespace {

using lanes::exponential;
using lanes::Lanes;
using lanes::load;
using lanes::store;

constexpr double kEpsilon = 1e-6;  // under the root of the norm

// Call body(row, offset of a register) over all rows.
template <class T, class Body> inline void each(int64_t rows, int64_t width, Body body) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t f = 0; f < width; f += Lanes<T>::n) body(i, f);
}

template <class V> inline V root(V square) {
    for (unsigned k = 0; k < sizeof(V) / sizeof(square[0]); ++k) square[k] = std::sqrt(square[k]);
    return square;
}

// Left and right of one atom at offset f.
template <class T> struct Pair {
    using V = typename Lanes<T>::V;
    V l[3], r[3];
    Pair(const T *lr, int64_t width, int64_t f) {
        for (int x = 0; x < 3; ++x) {
            l[x] = load(lr + 2 * x * width + f);
            r[x] = load(lr + (2 * x + 1) * width + f);
        }
    }
    // U v and V v of eqs. 9, 10
    V dot() const { return l[0] * r[0] + l[1] * r[1] + l[2] * r[2]; }
    V norm() const { return root<V>(r[0] * r[0] + r[1] * r[1] + r[2] * r[2] + T(kEpsilon)); }
};

}  // namespace
