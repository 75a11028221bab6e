// HydraGNN's steps at single atoms between matrix products, forward and backward. Rows have length L: F features and
// padding to whole vectors, zero but for columns F (1, for the bias of a product), F+1 and F+2 (charge and spin) of what
// enters a product. A pair of features has rows of 2L. Numbers in brackets are those of the formulas at the head of
// atomsieve/models/hydragnn/encoder.py.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace {

using lanes::exponential;
using lanes::Lanes;
using lanes::load;
using lanes::store;
using lanes::sum;

struct Rows {
    int64_t count, features, length;
};

template <class T> inline typename Lanes<T>::V tanh_of(typename Lanes<T>::V x) { return T(1) - T(2) / (exponential(x + x) + T(1)); }

// Call body(row, offset of a vector) over all rows.
template <class T, class Body> inline void each(const Rows &n, Body body) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n.count; ++i)
        for (int64_t f = 0; f < n.length; f += Lanes<T>::n) body(i, f);
}

template <class T> inline void close(const Rows &n, const T *attributes, T *x) {
    for (int64_t i = 0; i < n.count; ++i) {
        T *end = x + i * n.length + n.features;
        end[0] = 1;
        if (attributes) std::memcpy(end + 1, attributes + 2 * i, 2 * sizeof(T));
    }
}

// Lengths of V and products U.V of the vectors `uv` [3,2L] of one atom, at offset f.
template <class T> struct Pair {
    using V = typename Lanes<T>::V;
    V u[3], v[3];
    Pair(const T *uv, int64_t length, int64_t f) {
        for (int x = 0; x < 3; ++x) {
            u[x] = load(uv + 2 * x * length + f);
            v[x] = load(uv + (2 * x + 1) * length + f);
        }
    }
    V dot() const { return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]; }
    V norm() const {
        const V square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
        V root;
        for (int k = 0; k < Lanes<T>::n; ++k) root[k] = std::sqrt(square[k]);
        return root;
    }
};

}  // namespace

#define EXPORT(NAME, T)                                                                                                  \
    /* t = tanh(w s + b) of (9) in layer 0, then 1, charge, spin */                                                    \
    extern "C" void hydragnn_spread_##NAME(int64_t count, int64_t features, int64_t length, const double *s, const T *w,   \
                                           const T *b, const T *attributes, T *t) {                                      \
        const Rows n{count, features, length};                                                                           \
        each<T>(n, [=](int64_t i, int64_t f) { store(t + i * length + f, tanh_of<T>(load(w + f) * T(s[i]) + load(b + f))); }); \
        close(n, attributes, t);                                                                                         \
    }                                                                                                                    \
    /* gs[i] = sum of g (1 - t^2) w: the gradient of the line above */                                                   \
    extern "C" void hydragnn_spread_back_##NAME(int64_t count, int64_t features, int64_t length, const T *g, const T *t,  \
                                                const T *w, double *gs) {                                                \
        _Pragma("omp parallel for schedule(static)") for (int64_t i = 0; i < count; ++i) {                               \
            Lanes<T>::V total = {};                                                                                      \
            for (int64_t f = 0; f < length; f += Lanes<T>::n) {                                                          \
                const Lanes<T>::V a = load(t + i * length + f);                                                          \
                total += load(g + i * length + f) * (T(1) - a * a) * load(w + f);                                        \
            }                                                                                                            \
            gs[i] = sum<T>(total);                                                                                       \
        }                                                                                                                \
    }                                                                                                                    \
    extern "C" void hydragnn_relu_##NAME(int64_t count, int64_t features, int64_t length, T *x) {                         \
        const Rows n{count, features, length};                                                                           \
        each<T>(n, [=](int64_t i, int64_t f) {                                                                           \
            const Lanes<T>::V a = load(x + i * length + f);                                                              \
            store(x + i * length + f, a > T(0) ? a : Lanes<T>::V{});                                                     \
        });                                                                                                              \
        close<T>(n, nullptr, x);                                                                                         \
    }                                                                                                                    \
    /* total <- (total + g) where x > 0, else 0 */                                                                       \
    extern "C" void hydragnn_relu_back_##NAME(int64_t count, int64_t features, int64_t length, const T *g, const T *x,    \
                                              T *total) {                                                                \
        each<T>({count, features, length}, [=](int64_t i, int64_t f) {                                                   \
            const int64_t at = i * length + f;                                                                           \
            store(total + at, load(x + at) > T(0) ? load(total + at) + load(g + at) : Lanes<T>::V{});                    \
        });                                                                                                              \
    }                                                                                                                    \
    /* h = y sigmoid(y), y <- dh/dy */                                                                                   \
    extern "C" void hydragnn_silu_##NAME(int64_t count, int64_t features, int64_t length, T *y, T *h) {                   \
        const Rows n{count, features, length};                                                                           \
        each<T>(n, [=](int64_t i, int64_t f) {                                                                           \
            const Lanes<T>::V a = load(y + i * length + f), gate = T(1) / (T(1) + exponential(-a));                      \
            store(h + i * length + f, a * gate);                                                                         \
            store(y + i * length + f, gate * (T(1) + a * (T(1) - gate)));                                                \
        });                                                                                                              \
        close<T>(n, nullptr, h);                                                                                         \
    }                                                                                                                    \
    extern "C" void hydragnn_scale_##NAME(int64_t count, int64_t features, int64_t length, const T *by, T *g) {           \
        each<T>({count, features, length},                                                                               \
                [=](int64_t i, int64_t f) { store(g + i * length + f, load(g + i * length + f) * load(by + i * length + f)); }); \
    }                                                                                                                    \
    /* x[:, :L] = lengths of V */                                                                                        \
    extern "C" void hydragnn_norm_##NAME(int64_t count, int64_t features, int64_t length, const T *uv, T *x) {            \
        each<T>({count, features, length}, [=](int64_t i, int64_t f) {                                                   \
            store(x + i * 2 * length + f, Pair<T>(uv + i * 6 * length, length, f).norm());                               \
        });                                                                                                              \
    }                                                                                                                    \
    /* (8): out = s + a U.V + b, s in the second half of x, (a, b) = q */                                                \
    extern "C" void hydragnn_gate_##NAME(int64_t count, int64_t features, int64_t length, const T *x, const T *uv,        \
                                         const T *q, T *out) {                                                           \
        const Rows n{count, features, length};                                                                           \
        each<T>(n, [=](int64_t i, int64_t f) {                                                                           \
            const int64_t at = i * 2 * length + f;                                                                       \
            store(out + i * length + f, load(x + at + length) + load(q + at) * Pair<T>(uv + i * 6 * length, length, f).dot() + \
                                            load(q + at + length));                                                      \
        });                                                                                                              \
        close<T>(n, nullptr, out);                                                                                       \
    }                                                                                                                    \
    extern "C" void hydragnn_gate_back_##NAME(int64_t count, int64_t features, int64_t length, const T *g, const T *uv,   \
                                              T *gq) {                                                                   \
        each<T>({count, features, length}, [=](int64_t i, int64_t f) {                                                   \
            const Lanes<T>::V a = load(g + i * length + f);                                                              \
            store(gq + i * 2 * length + f, a * Pair<T>(uv + i * 6 * length, length, f).dot());                           \
            store(gq + i * 2 * length + length + f, a);                                                                  \
        });                                                                                                              \
    }                                                                                                                    \
    /* g += second half of gx; uv <- gradients by U and V */                                                             \
    extern "C" void hydragnn_norm_back_##NAME(int64_t count, int64_t features, int64_t length, const T *gx, const T *q,   \
                                              T *g, T *uv) {                                                             \
        each<T>({count, features, length}, [=](int64_t i, int64_t f) {                                                   \
            const int64_t at = i * 2 * length + f;                                                                       \
            const Pair<T> p(uv + i * 6 * length, length, f);                                                             \
            const Lanes<T>::V norm = p.norm(), up = load(g + i * length + f), by_dot = up * load(q + at);                \
            const Lanes<T>::V by_norm = norm > T(0) ? load(gx + at) / norm : Lanes<T>::V{};                              \
            store(g + i * length + f, up + load(gx + at + length));                                                      \
            for (int x = 0; x < 3; ++x) {                                                                                \
                T *to = uv + i * 6 * length + 2 * x * length + f;                                                        \
                store(to, by_dot * p.v[x]);                                                                              \
                store(to + length, by_dot * p.u[x] + by_norm * p.v[x]);                                                  \
            }                                                                                                            \
        });                                                                                                              \
    }                                                                                                                    \
    extern "C" void hydragnn_tanh_##NAME(int64_t count, int64_t features, int64_t length, const T *attributes, T *x) {    \
        const Rows n{count, features, length};                                                                           \
        each<T>(n, [=](int64_t i, int64_t f) { store(x + i * length + f, tanh_of<T>(load(x + i * length + f))); });      \
        close(n, attributes, x);                                                                                         \
    }                                                                                                                    \
    extern "C" void hydragnn_tanh_back_##NAME(int64_t count, int64_t features, int64_t length, const T *t, T *g) {        \
        each<T>({count, features, length}, [=](int64_t i, int64_t f) {                                                   \
            const Lanes<T>::V a = load(t + i * length + f);                                                              \
            store(g + i * length + f, load(g + i * length + f) * (T(1) - a * a));                                        \
        });                                                                                                              \
    }                                                                                                                    \
    /* ReLU of (10) and the sum of (11), [S,L], over the atoms of each structure; ptr counts from the first row of x */      \
    extern "C" void hydragnn_pool_##NAME(int64_t structures, int64_t length, const int64_t *ptr, const T *x, T *out) {     \
        for (int64_t s = 0; s < structures; ++s)                                                                         \
            for (int64_t f = 0; f < length; f += Lanes<T>::n) {                                                          \
                Lanes<T>::V total = {};                                                                                  \
                for (int64_t i = ptr[s] - ptr[0]; i < ptr[s + 1] - ptr[0]; ++i) {                                        \
                    const Lanes<T>::V a = load(x + i * length + f);                                                      \
                    total += a > T(0) ? a : Lanes<T>::V{};                                                               \
                }                                                                                                        \
                store(out + s * length + f, total);                                                                      \
            }                                                                                                            \
    }                                                                                                                    \
    extern "C" void hydragnn_pool_back_##NAME(int64_t structures, int64_t length, const int64_t *ptr, const T *x,          \
                                              const T *g, T *out) {                                                      \
        for (int64_t s = 0; s < structures; ++s)                                                                         \
            for (int64_t i = ptr[s] - ptr[0]; i < ptr[s + 1] - ptr[0]; ++i)                                              \
                for (int64_t f = 0; f < length; f += Lanes<T>::n)                                                        \
                    store(out + i * length + f, load(x + i * length + f) > T(0) ? load(g + s * length + f) : Lanes<T>::V{}); \
    }
EXPORT(f32, float)
EXPORT(f64, double)
