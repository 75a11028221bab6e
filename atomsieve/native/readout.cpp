// Products of atoms with the matrix of their head, for all heads and members in one call.
//
// Atoms of a head follow each other: spans [S,3] hold head, first and one past the last atom. K members, N atoms, H heads;
// matrices w [K,H,A,B]. Widths are whole vectors of a register. Used by atomsieve/models/grouped_readout.py.
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"

namespace {

using lanes::Lanes;
using lanes::load;
using lanes::store;

// c [rows,B] (+)= a b for `many` rows and two registers of columns; a(i,k) stands at a[i * row + k * column].
template <class T, int many>
inline void block(int64_t depth, const T *a, int64_t row, int64_t column, const T *b, int64_t width, const T *bias, T *c) {
    using V = typename Lanes<T>::V;
    constexpr int n = Lanes<T>::n;
    V sum[many][2];
    for (int i = 0; i < many; ++i) {
        sum[i][0] = bias ? load(bias) : V{};
        sum[i][1] = bias ? load(bias + n) : V{};
    }
    for (int64_t k = 0; k < depth; ++k) {
        const V b0 = load(b + k * width), b1 = load(b + k * width + n);
        for (int i = 0; i < many; ++i) {
            const T factor = a[i * row + k * column];
            sum[i][0] += b0 * factor;
            sum[i][1] += b1 * factor;
        }
    }
    for (int i = 0; i < many; ++i) {
        store(c + i * width, sum[i][0]);
        store(c + i * width + n, sum[i][1]);
    }
}

// c [rows,width] = a b (+ bias), b [depth,width]
template <class T>
void multiply(int64_t rows, int64_t depth, int64_t width, const T *a, int64_t row, int64_t column, const T *b, const T *bias,
              T *c) {
    for (int64_t f = 0; f < width; f += 2 * Lanes<T>::n) {
        const T *own = bias ? bias + f : nullptr;
        int64_t i = 0;
        for (; i + 4 <= rows; i += 4) block<T, 4>(depth, a + i * row, row, column, b + f, width, own, c + i * width + f);
        for (; i < rows; ++i) block<T, 1>(depth, a + i * row, row, column, b + f, width, own, c + i * width + f);
    }
}

// out [K,N,B] = x [K,N,A] w (+ bias [K,H,B]); transposed: out [K,N,A] = x [K,N,B] w^T. `step`: of x from member to member.
template <class T>
void grouped_multiply(int64_t members, int64_t atoms, int64_t A, int64_t B, int64_t heads, int64_t count, int64_t transposed,
                      int64_t step, const int64_t *spans, const T *x, const T *w, const T *bias, T *out) {
    const int64_t depth = transposed ? B : A, width = transposed ? A : B;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t k = 0; k < members; ++k)
        for (int64_t s = 0; s < count; ++s) {
            const int64_t head = k * heads + spans[3 * s], first = spans[3 * s + 1], stop = spans[3 * s + 2];
            const T *matrix = w + head * A * B;
            std::vector<T> turned(transposed ? A * B : 0);
            if (transposed) {
                for (int64_t a = 0; a < A; ++a)
                    for (int64_t b = 0; b < B; ++b) turned[b * A + a] = matrix[a * B + b];
                matrix = turned.data();
            }
            multiply(stop - first, depth, width, x + k * step + first * depth, depth, int64_t(1), matrix,
                     bias ? bias + head * width : nullptr, out + (k * atoms + first) * width);
        }
}

// out [K,H,A,B]: for each head the sum over its atoms of x [K,N,A] times y [K,N,B]; zero for heads without atoms.
template <class T>
void grouped_outer(int64_t members, int64_t atoms, int64_t A, int64_t B, int64_t heads, int64_t count, int64_t step,
                   const int64_t *spans, const T *x, const T *y, T *out) {
    std::memset(out, 0, sizeof(T) * members * heads * A * B);
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t k = 0; k < members; ++k)
        for (int64_t s = 0; s < count; ++s) {
            const int64_t head = k * heads + spans[3 * s], first = spans[3 * s + 1], stop = spans[3 * s + 2];
            multiply(A, stop - first, B, x + k * step + first * A, int64_t(1), A, y + (k * atoms + first) * B,
                     static_cast<const T *>(nullptr), out + head * A * B);
        }
}

} // namespace

extern "C" {
#define KERNELS(T, SUFFIX)                                                                                                   \
    void readout_multiply_##SUFFIX(int64_t K, int64_t N, int64_t A, int64_t B, int64_t H, int64_t S, int64_t transposed,     \
                                   int64_t step, const int64_t *spans, const T *x, const T *w, const T *bias, T *out) {      \
        grouped_multiply<T>(K, N, A, B, H, S, transposed, step, spans, x, w, bias, out);                                     \
    }                                                                                                                        \
    void readout_outer_##SUFFIX(int64_t K, int64_t N, int64_t A, int64_t B, int64_t H, int64_t S, int64_t step,              \
                                const int64_t *spans, const T *x, const T *y, T *out) {                                      \
        grouped_outer<T>(K, N, A, B, H, S, step, spans, x, y, out);                                                          \
    }
KERNELS(float, f32)
KERNELS(double, f64)
}
