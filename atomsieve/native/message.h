// What the kernels of messages share: filters of a block of edges, working memory, the work of each thread.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "lanes.h"

namespace {

using lanes::Lanes;
using lanes::load;
using lanes::store;
using lanes::sum;

constexpr int kBlock = 16;  // edges handled together: their payload stays in the first-level cache; a multiple of the tiles below

struct Shape {
    int64_t members, atoms, edges, width, radial;
};

template <class T> inline int64_t padded_radial(const Shape &s) { return (s.radial + Lanes<T>::n - 1) / Lanes<T>::n * Lanes<T>::n; }

struct Csr {
    const int64_t *row_ptr, *sender;
};

// Copy `count` rows of `radial` values into rows of `padded` values, zero beyond, for whole tiles of edges.
template <class T>
inline void stage(const T *rows, int64_t count, int64_t radial, int64_t padded, T *out) {
    std::memset(out, 0, sizeof(T) * kBlock * padded);
    for (int64_t e = 0; e < count; ++e) std::memcpy(out + e * padded, rows + e * radial, sizeof(T) * radial);
}

// out[e,:] = basis[e,:] . weights  for e < count (rounded up to a tile of 4 edges; two vectors of channels at a time).
template <class T>
inline void filter(const T *basis, int64_t count, int64_t radial, int64_t padded, const T *weights, int64_t wide, T *out) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    int64_t f = 0;
    for (; f + 2 * L <= wide; f += 2 * L) {
        for (int64_t e = 0; e < count; e += 4) {
            const T *a = basis + e * padded;
            V w[4][2] = {};
            for (int64_t r = 0; r < radial; ++r) {
                const V left = load(weights + r * wide + f), right = load(weights + r * wide + f + L);
                for (int k = 0; k < 4; ++k) {
                    w[k][0] += left * a[k * padded + r];
                    w[k][1] += right * a[k * padded + r];
                }
            }
            for (int k = 0; k < 4; ++k) {
                store(out + (e + k) * wide + f, w[k][0]);
                store(out + (e + k) * wide + f + L, w[k][1]);
            }
        }
    }
    for (; f < wide; f += L) {
        for (int64_t e = 0; e < count; ++e) {
            V w = {};
            for (int64_t r = 0; r < radial; ++r) w += load(weights + r * wide + f) * basis[e * padded + r];
            store(out + e * wide + f, w);
        }
    }
}

// out[e,r] = sum_f grads[e,f] weights_t[f,r]: gradient of the basis, a tile of 4 edges and two vectors of r at a time.
template <class T>
inline void filter_grad_basis(const T *grads, int64_t count, int64_t padded, const T *weights_t, int64_t wide, T *out) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    for (int64_t r = 0; r < padded; r += L) {
        for (int64_t e = 0; e < count; e += 8) {
            V g[8] = {};
            for (int64_t f = 0; f < wide; ++f) {
                const V w = load(weights_t + f * padded + r);
                for (int k = 0; k < 8; ++k) g[k] += w * grads[(e + k) * wide + f];
            }
            for (int k = 0; k < 8; ++k) store(out + (e + k) * padded + r, g[k]);
        }
    }
}

// into[r,f] += sum_e basis[e,r] grads[e,f]: gradient of the filter weights, 4 radial functions and two vectors at a time.
template <class T>
inline void filter_grad_weights(const T *basis, const T *grads, int64_t count, int64_t radial, int64_t padded, int64_t wide,
                                T *into) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    int64_t f = 0;
    for (; f + 2 * L <= wide; f += 2 * L) {
        int64_t r = 0;
        for (; r + 4 <= radial; r += 4) {
            V g[4][2];
            for (int k = 0; k < 4; ++k) {
                g[k][0] = load(into + (r + k) * wide + f);
                g[k][1] = load(into + (r + k) * wide + f + L);
            }
            for (int64_t e = 0; e < count; ++e) {
                const V left = load(grads + e * wide + f), right = load(grads + e * wide + f + L);
                const T *a = basis + e * padded + r;
                for (int k = 0; k < 4; ++k) {
                    g[k][0] += left * a[k];
                    g[k][1] += right * a[k];
                }
            }
            for (int k = 0; k < 4; ++k) {
                store(into + (r + k) * wide + f, g[k][0]);
                store(into + (r + k) * wide + f + L, g[k][1]);
            }
        }
        for (; r < radial; ++r) {
            V left = load(into + r * wide + f), right = load(into + r * wide + f + L);
            for (int64_t e = 0; e < count; ++e) {
                left += load(grads + e * wide + f) * basis[e * padded + r];
                right += load(grads + e * wide + f + L) * basis[e * padded + r];
            }
            store(into + r * wide + f, left);
            store(into + r * wide + f + L, right);
        }
    }
    for (; f < wide; f += L) {
        for (int64_t r = 0; r < radial; ++r) {
            V g = load(into + r * wide + f);
            for (int64_t e = 0; e < count; ++e) g += load(grads + e * wide + f) * basis[e * padded + r];
            store(into + r * wide + f, g);
        }
    }
}

// Working memory of one thread.
template <class T> struct Scratch {
    std::vector<T> basis, basis_dot, w, w_dot, c, c_dot, grad_basis, weights_t, row;
    // wide: channels of all filters together; components: of a payload.
    Scratch(const Shape &s, int64_t wide, int components)
        : basis(kBlock * padded_radial<T>(s)), basis_dot(kBlock * padded_radial<T>(s)), w(kBlock * wide), w_dot(kBlock * wide),
          c(kBlock * wide), c_dot(kBlock * wide), grad_basis(kBlock * padded_radial<T>(s)),
          weights_t(wide * padded_radial<T>(s)), row(components * s.width) {}

    void transpose(const T *weights, const Shape &s, int64_t wide) {
        const int64_t padded = padded_radial<T>(s);
        std::fill(weights_t.begin(), weights_t.end(), T(0));
        for (int64_t r = 0; r < s.radial; ++r)
            for (int64_t f = 0; f < wide; ++f) weights_t[f * padded + r] = weights[r * wide + f];
    }
};

// Call body(member, first row, last row, thread) over blocks of rows of all members.
template <class Body> void for_rows(const Shape &s, Body body) {
    constexpr int64_t rows = 64;
    const int64_t blocks = (s.atoms + rows - 1) / rows, tasks = blocks * s.members;
#ifdef _OPENMP
#pragma omp parallel
#endif
    {
#ifdef _OPENMP
        const int thread = omp_get_thread_num();
#else
        const int thread = 0;
#endif
        auto state = body(thread);
#ifdef _OPENMP
#pragma omp for schedule(static, 1)  // a fixed share for each thread: sums come out the same every time
#endif
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t first = (task % blocks) * rows;
            state(task / blocks, first, first + rows < s.atoms ? first + rows : s.atoms);
        }
    }
}

inline int threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

}  // namespace
