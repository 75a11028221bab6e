// Products of a few rows with a matrix that stays in cache: what lies between the steps of a block of atoms.
#pragma once
#include <algorithm>
#include <cstdint>

#include "lanes.h"

namespace product {

using lanes::Lanes;
using lanes::load;
using lanes::store;

// M rows of W (1 or 2) registers of columns, each under a name of its own: arrays would be added up in memory.
template <class T, int M, int W> struct Rows {
    typename Lanes<T>::V left, right;
    Rows<T, M - 1, W> rest;

    inline void begin(const T *start, int64_t row) {
        left = start ? load(start) : typename Lanes<T>::V{};
        if constexpr (W == 2) right = start ? load(start + Lanes<T>::n) : typename Lanes<T>::V{};
        rest.begin(start ? start + row : start, row);
    }
    inline void add(const T *a, int64_t row, typename Lanes<T>::V l, typename Lanes<T>::V r) {
        left += l * *a;
        if constexpr (W == 2) right += r * *a;
        rest.add(a + row, row, l, r);
    }
    inline void put(T *C, int64_t row) const {
        store(C, left);
        if constexpr (W == 2) store(C + Lanes<T>::n, right);
        rest.put(C + row, row);
    }
};
template <class T, int W> struct Rows<T, 0, W> {
    inline void begin(const T *, int64_t) {}
    inline void add(const T *, int64_t, typename Lanes<T>::V, typename Lanes<T>::V) {}
    inline void put(T *, int64_t) const {}
};

// C = start + A B for M rows and W registers of columns.
template <class T, int M, int W>
[[gnu::noinline]] void tile(int64_t inner, const T *A, int64_t a_row, const T *B, int64_t b_row, const T *start, int64_t start_row, T *C,
                 int64_t c_row) {
    Rows<T, M, W> c;
    c.begin(start, start_row);
    for (int64_t k = 0; k < inner; ++k) c.add(A + k, a_row, load(B + k * b_row), load(B + k * b_row + (W - 1) * Lanes<T>::n));
    c.put(C, c_row);
}

template <class T, int W>
inline void strip(int64_t rows, int64_t inner, const T *A, int64_t a_row, const T *B, int64_t b_row, const T *start,
                  int64_t start_row, T *C, int64_t c_row) {
    int64_t i = 0;
    for (; i + 6 <= rows; i += 6)
        tile<T, 6, W>(inner, A + i * a_row, a_row, B, b_row, start ? start + i * start_row : start, start_row, C + i * c_row, c_row);
    for (; i + 2 <= rows; i += 2)
        tile<T, 2, W>(inner, A + i * a_row, a_row, B, b_row, start ? start + i * start_row : start, start_row, C + i * c_row, c_row);
    for (; i < rows; ++i)
        tile<T, 1, W>(inner, A + i * a_row, a_row, B, b_row, start ? start + i * start_row : start, start_row, C + i * c_row, c_row);
}

// C [rows,columns] = start + A [rows,inner] B [inner,columns], rows so far apart as said. start: null for zero, or rows
// (start_row 0: one for all, a bias).
template <class T>
inline void multiply(int64_t rows, int64_t inner, int64_t columns, const T *A, int64_t a_row, const T *B, int64_t b_row,
                     const T *start, int64_t start_row, T *C, int64_t c_row) {
    constexpr int L = Lanes<T>::n;
    int64_t n = 0;
    for (; n + 2 * L <= columns; n += 2 * L)
        strip<T, 2>(rows, inner, A, a_row, B + n, b_row, start ? start + n : start, start_row, C + n, c_row);
    for (; n < columns; n += L)
        strip<T, 1>(rows, inner, A, a_row, B + n, b_row, start ? start + n : start, start_row, C + n, c_row);
}

}  // namespace product
