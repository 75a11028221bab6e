// Heads of a readout on their atoms, for all heads and members in one call: products with the matrix of each atom's head,
// and energies e = scale (w . silu(z) + c) with their first and second derivatives.
//
// Atoms of a head follow each other: spans [S,3] hold head, first and one past the last atom. K members, N atoms, H heads;
// matrices w [K,H,A,B]. Widths are whole vectors of a register. Used by atomsieve/models/grouped_readout.py.
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"

namespace {

using lanes::exponential;
using lanes::Lanes;
using lanes::load;
using lanes::store;
using lanes::sum;

// c [rows,B] (+)= a b for `many` rows and two registers of columns; a(i,k) stands at a[i * row + k * column].
template <class T, int many>
inline void block(int64_t depth, const T *a, int64_t row, int64_t column, const T *b, int64_t width, const T *bias, T *c) {
    using V = typename Lanes<T>::V;
    constexpr int n = Lanes<T>::n;
    V total[many][2];
    for (int i = 0; i < many; ++i) {
        total[i][0] = bias ? load(bias) : V{};
        total[i][1] = bias ? load(bias + n) : V{};
    }
    for (int64_t k = 0; k < depth; ++k) {
        const V b0 = load(b + k * width), b1 = load(b + k * width + n);
        for (int i = 0; i < many; ++i) {
            const T factor = a[i * row + k * column];
            total[i][0] += b0 * factor;
            total[i][1] += b1 * factor;
        }
    }
    for (int i = 0; i < many; ++i) {
        store(c + i * width, total[i][0]);
        store(c + i * width + n, total[i][1]);
    }
}

// c [rows,width] = a b (+ bias), b [depth,width]
template <class T>
void multiply(int64_t rows, int64_t depth, int64_t width, const T *a, int64_t row, int64_t column, const T *b, const T *bias,
              T *c) {
    for (int64_t f = 0; f < width; f += 2 * Lanes<T>::n) {
        const T *own = bias ? bias + f : nullptr;
        int64_t i = 0;
        for (; i + 6 <= rows; i += 6) block<T, 6>(depth, a + i * row, row, column, b + f, width, own, c + i * width + f);
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

// The hidden units z [K,N,D] of the heads, and what their energies need.
template <class T> struct Units {
    int64_t members, atoms, D, heads, count;
    const int64_t *spans;
    const T *scales, *z, *w; // [H], [K,N,D], [K,H,D]

    // Call body(place of the atom in [K,N], place of its head in [K,H], scale) for all atoms of all members.
    template <class Body> void each(Body body) const {
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t k = 0; k < members; ++k)
            for (int64_t s = 0; s < count; ++s)
                for (int64_t i = spans[3 * s + 1]; i < spans[3 * s + 2]; ++i)
                    body(k * atoms + i, k * heads + spans[3 * s], scales[spans[3 * s]]);
    }
};

template <class V> inline V gate(V z) { return V{} + 1 / (1 + exponential(-z)); }

template <class T> void energy(const Units<T> &u, const T *c, T *e) {
    using V = typename Lanes<T>::V;
    u.each([&](int64_t atom, int64_t head, T scale) {
        V total{};
        for (int64_t f = 0; f < u.D; f += Lanes<T>::n) {
            const V z = load(u.z + atom * u.D + f);
            total += load(u.w + head * u.D + f) * z * gate(z);
        }
        e[atom] = scale * (sum<T>(total) + c[head]);
    });
}

// by_z = g scale w silu'(z)
template <class T> void energy_back(const Units<T> &u, const T *g, T *by_z) {
    using V = typename Lanes<T>::V;
    u.each([&](int64_t atom, int64_t head, T scale) {
        const T factor = g[atom] * scale;
        for (int64_t f = 0; f < u.D; f += Lanes<T>::n) {
            const V z = load(u.z + atom * u.D + f), p = gate(z);
            store(by_z + atom * u.D + f, load(u.w + head * u.D + f) * p * (1 + z * (1 - p)) * factor);
        }
    });
}

// by_w [K,H,D] = sum over atoms of g scale silu(z)
template <class T> void energy_weights(const Units<T> &u, const T *g, T *by_w) {
    using V = typename Lanes<T>::V;
    std::memset(by_w, 0, sizeof(T) * u.members * u.heads * u.D);
    u.each([&](int64_t atom, int64_t head, T scale) {
        const T factor = g[atom] * scale;
        for (int64_t f = 0; f < u.D; f += Lanes<T>::n) {
            const V z = load(u.z + atom * u.D + f);
            T *to = by_w + head * u.D + f;
            store(to, load(to) + z * gate(z) * factor);
        }
    });
}

// Transpose of `energy_back`, by x [K,N,D], the gradient by its result: by g [K,N], by z and by w.
template <class T> void energy_twice(const Units<T> &u, const T *g, const T *x, T *by_g, T *by_z, T *by_w) {
    using V = typename Lanes<T>::V;
    std::memset(by_w, 0, sizeof(T) * u.members * u.heads * u.D);
    u.each([&](int64_t atom, int64_t head, T scale) {
        const T factor = g[atom] * scale;
        V total{};
        for (int64_t f = 0; f < u.D; f += Lanes<T>::n) {
            const int64_t at = atom * u.D + f;
            const V z = load(u.z + at), p = gate(z), w = load(u.w + head * u.D + f), by = load(x + at);
            const V first = p * (1 + z * (1 - p)), second = p * (1 - p) * (2 + z * (1 - 2 * p)); // silu', silu''
            total += by * w * first;
            store(by_z + at, by * w * second * factor);
            T *to = by_w + head * u.D + f;
            store(to, load(to) + by * first * factor);
        }
        by_g[atom] = scale * sum<T>(total);
    });
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
    }                                                                                                                        \
    void readout_energy_##SUFFIX(int64_t K, int64_t N, int64_t D, int64_t H, int64_t S, const int64_t *spans,                \
                                 const T *scales, const T *z, const T *w, const T *c, T *e) {                                \
        energy<T>({K, N, D, H, S, spans, scales, z, w}, c, e);                                                               \
    }                                                                                                                        \
    void readout_energy_back_##SUFFIX(int64_t K, int64_t N, int64_t D, int64_t H, int64_t S, const int64_t *spans,           \
                                      const T *scales, const T *z, const T *w, const T *g, T *by_z) {                        \
        energy_back<T>({K, N, D, H, S, spans, scales, z, w}, g, by_z);                                                       \
    }                                                                                                                        \
    void readout_energy_weights_##SUFFIX(int64_t K, int64_t N, int64_t D, int64_t H, int64_t S, const int64_t *spans,        \
                                         const T *scales, const T *z, const T *w, const T *g, T *by_w) {                     \
        energy_weights<T>({K, N, D, H, S, spans, scales, z, w}, g, by_w);                                                    \
    }                                                                                                                        \
    void readout_energy_twice_##SUFFIX(int64_t K, int64_t N, int64_t D, int64_t H, int64_t S, const int64_t *spans,          \
                                       const T *scales, const T *z, const T *w, const T *g, const T *x, T *by_g, T *by_z,    \
                                       T *by_w) {                                                                            \
        energy_twice<T>({K, N, D, H, S, spans, scales, z, w}, g, x, by_g, by_z, by_w);                                       \
    }
KERNELS(float, f32)
KERNELS(double, f64)
}
