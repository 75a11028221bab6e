// HydraGNN's two message layers over receiver-sorted edges, forward and analytic backward, without edge-wide features.
// Numbers in brackets are those of the formulas at the head of
// atomsieve/models/hydragnn/encoder.py.
//
// For an edge e from sender j to receiver i, r = |d_e|: K = R+1 values b_e = [sin(n pi r/rc)/r * fc, fc] and a direction
// c_e = d_e / ((r + 1e-9) r). A filter is A^T b_e. Layer 0 has one feature; layer 1 has F, and vectors that enter it are
// v_j (x) w + beta, of rank one. With payloads phi_j = [v, e, s] of F features each:
//     s_i += sum_e W_s phi_s,   v_i += sum_e W_v phi_v (v_j w + beta) + W_e phi_e c_e
// The backward pass goes over the edges that leave an atom (`order`, from `hydragnn_transpose`): gradients of the sender
// stay in registers or in its rows, those of an edge are its own. No atomics, no scatter; an atom's sums have one order.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "hydragnn_narrow.h"

namespace {

using lanes::Lanes;
using lanes::load;
using lanes::store;
using lanes::sum;

constexpr int kFeatureBytes = 1024;  // features handled together: their filters' weights stay in the first-level cache

// -- layer 1: F features -------------------------------------------------------------------------------------------

// Weights by feature: `filters` [3,K,L] of the parts v, e, s; `w` and `beta` [L] of the vectors that enter. Without a
// beta, w has been multiplied into the payload phi_v (and `w` serves only what an atom keeps of its own vector).
template <class T> struct Wide {
    int64_t length;  // L: features and padding to whole vectors
    const T *filters, *w, *beta;
};

// Add the messages of kEdges edges to scalars y [L] and vectors z [3,L], for features from f0 to f1.
template <class T, int K, int kEdges, bool kBiased>
inline void receive(const Wide<T> &m, int64_t values, const T *const *b, const T *const *phi, const T *const *v0, int64_t f0,
                    int64_t f1, T *y, T *z) {
    using V = typename Lanes<T>::V;
    const int64_t L = m.length, n = K ? K : values;
    const T *Av = m.filters, *Ae = Av + n * L, *As = Ae + n * L;
    for (int64_t f = f0; f < f1; f += Lanes<T>::n) {
        V wv[kEdges] = {}, we[kEdges] = {}, ws[kEdges] = {};
        for (int64_t r = 0; r < n; ++r) {
            const V av = load(Av + r * L + f), ae = load(Ae + r * L + f), as = load(As + r * L + f);
            for (int k = 0; k < kEdges; ++k) {
                wv[k] += av * b[k][r];  // (3)
                we[k] += ae * b[k][r];
                ws[k] += as * b[k][r];
            }
        }
        V s = load(y + f), x0 = load(z + f), x1 = load(z + L + f), x2 = load(z + 2 * L + f);
        for (int k = 0; k < kEdges; ++k) {
            const V pv = wv[k] * load(phi[k] + f), pe = we[k] * load(phi[k] + L + f);
            const T *c = b[k] + n;
            s += ws[k] * load(phi[k] + 2 * L + f);  // (5)
            x0 += pe * c[0];  // (6), second summand
            x1 += pe * c[1];
            x2 += pe * c[2];
            if (kBiased) {
                const V w = load(m.w + f), beta = load(m.beta + f);
                x0 += pv * (w * v0[k][0] + beta);  // (6), first summand, v_j of rank one
                x1 += pv * (w * v0[k][1] + beta);
                x2 += pv * (w * v0[k][2] + beta);
            } else {
                x0 += pv * v0[k][0];  // (6), first summand; w is part of pv
                x1 += pv * v0[k][1];
                x2 += pv * v0[k][2];
            }
        }
        store(y + f, s);
        store(z + f, x0);
        store(z + L + f, x1);
        store(z + 2 * L + f, x2);
    }
}

// Scalars and vectors of atoms first to last after the message, into sm (rows of length ld) and vm [last-first,3,L].
template <class T, int K, bool kBiased>
void wide_forward(int64_t first, int64_t last, const Edges g, const T *basis, const Wide<T> m, const T *phi, const T *v0,
                  const T *s1, T *sm, int64_t ld, T *vm) {
    using V = typename Lanes<T>::V;
    constexpr int kTile = 4;
    const int64_t L = m.length, block = kFeatureBytes / sizeof(T);
#pragma omp parallel for schedule(static)
    for (int64_t i = first; i < last; ++i) {
        T *y = sm + (i - first) * ld, *z = vm + (i - first) * 3 * L;
        std::memcpy(y, s1 + i * L, sizeof(T) * L);
        for (int64_t f = 0; f < L; f += Lanes<T>::n) {
            const V w = load(m.w + f), beta = kBiased ? load(m.beta + f) : V{};
            for (int x = 0; x < 3; ++x) store(z + x * L + f, w * v0[4 * i + x] + beta);
        }
        for (int64_t f0 = 0; f0 < L; f0 += block) {
            const int64_t f1 = f0 + block < L ? f0 + block : L;
            const T *b[kTile], *p[kTile], *v[kTile];
            int64_t e = g.row_ptr[i];
            for (; e < g.row_ptr[i + 1]; e += kTile) {
                const int count = g.row_ptr[i + 1] - e < kTile ? int(g.row_ptr[i + 1] - e) : kTile;
                for (int k = 0; k < count; ++k) {
                    b[k] = basis + (e + k) * g.stride;
                    p[k] = phi + g.sender[e + k] * 3 * L;
                    v[k] = v0 + g.sender[e + k] * 4;
                }
                if (count == kTile) {
                    receive<T, K, kTile, kBiased>(m, g.values, b, p, v, f0, f1, y, z);
                } else {
                    for (int k = 0; k < count; ++k) receive<T, K, 1, kBiased>(m, g.values, b + k, p + k, v + k, f0, f1, y, z);
                }
            }
        }
    }
}

// What one tile of edges that leave an atom sends back: adds to gphi [3,L] and gv [3] of the sender, and to by_length [1]
// and by_c [3] of each edge. `a` are the gradients of scalars, `t` those of vectors [3,L], at the receivers.
template <class T, int K, int kEdges, bool kBiased>
inline void send_back(const Wide<T> &m, int64_t values, const T *const *b, const T *const *db, const T *const *a,
                      const T *const *t, const T *phi, const T *v0, int64_t f0, int64_t f1, T *gphi, T *gv, T *const *out) {
    using V = typename Lanes<T>::V;
    const int64_t L = m.length, n = K ? K : values;
    const T *Av = m.filters, *Ae = Av + n * L, *As = Ae + n * L;
    V by_length[kEdges] = {}, c0[kEdges] = {}, c1[kEdges] = {}, c2[kEdges] = {}, g0 = {}, g1 = {}, g2 = {};
    for (int64_t f = f0; f < f1; f += Lanes<T>::n) {
        V w[kEdges] = {}, d[kEdges] = {};
        for (int64_t r = 0; r < n; ++r) {
            const V weight = load(As + r * L + f);
            for (int k = 0; k < kEdges; ++k) {
                w[k] += weight * b[k][r];
                d[k] += weight * db[k][r];
            }
        }
        V into = load(gphi + 2 * L + f);
        const V ps = load(phi + 2 * L + f);
        for (int k = 0; k < kEdges; ++k) {
            const V up = load(a[k] + f);
            into += w[k] * up;  // (5) by p_s
            by_length[k] += d[k] * (ps * up);  // (5) by r
            w[k] = d[k] = V{};
        }
        store(gphi + 2 * L + f, into);
        for (int64_t r = 0; r < n; ++r) {
            const V weight = load(Av + r * L + f);
            for (int k = 0; k < kEdges; ++k) {
                w[k] += weight * b[k][r];
                d[k] += weight * db[k][r];
            }
        }
        into = load(gphi + f);
        const V pv = load(phi + f);
        for (int k = 0; k < kEdges; ++k) {
            const V t0 = load(t[k] + f), t1 = load(t[k] + L + f), t2 = load(t[k] + 2 * L + f);
            V inner = t0 * v0[0] + t1 * v0[1] + t2 * v0[2], push = w[k] * pv;
            if (kBiased) {
                inner = inner * load(m.w + f) + (t0 + t1 + t2) * load(m.beta + f);
                push *= load(m.w + f);
            }
            into += w[k] * inner;
            by_length[k] += d[k] * (pv * inner);  // (6), first summand, by r
            g0 += push * t0;  // (6) by v_j
            g1 += push * t1;
            g2 += push * t2;
            w[k] = d[k] = V{};
        }
        store(gphi + f, into);
        for (int64_t r = 0; r < n; ++r) {
            const V weight = load(Ae + r * L + f);
            for (int k = 0; k < kEdges; ++k) {
                w[k] += weight * b[k][r];
                d[k] += weight * db[k][r];
            }
        }
        into = load(gphi + L + f);
        const V pe = load(phi + L + f);
        for (int k = 0; k < kEdges; ++k) {
            const T *c = b[k] + n;
            const V t0 = load(t[k] + f), t1 = load(t[k] + L + f), t2 = load(t[k] + 2 * L + f);
            const V inner = t0 * c[0] + t1 * c[1] + t2 * c[2], push = w[k] * pe;
            into += w[k] * inner;
            by_length[k] += d[k] * (pe * inner);  // (6), second summand, by r
            c0[k] += push * t0;  // (6) by c
            c1[k] += push * t1;
            c2[k] += push * t2;
        }
        store(gphi + L + f, into);
    }
    gv[0] += sum<T>(g0);
    gv[1] += sum<T>(g1);
    gv[2] += sum<T>(g2);
    for (int k = 0; k < kEdges; ++k) {
        out[k][0] += sum<T>(by_length[k]);
        out[k][1] += sum<T>(c0[k]);
        out[k][2] += sum<T>(c1[k]);
        out[k][3] += sum<T>(c2[k]);
    }
}

// Gradients by payloads gphi [last-first,3,L], by entering vectors gv0 [N,4] and of edges by length and c_e (out [E,4]), for
// the edges that leave atoms first to last, whose receivers lie there too. gs, gv: gradients by scalars and vectors there.
template <class T, int K, bool kBiased>
void wide_backward(int64_t first, int64_t last, const Edges g, const int64_t *receiver, const int64_t *column,
                   const int64_t *order, const T *basis, const T *slope, const Wide<T> m, const T *phi, const T *v0,
                   const T *gs, const T *gv, T *gphi, T *gv0, T *out) {
    using V = typename Lanes<T>::V;
    constexpr int kTile = 2;
    const int64_t L = m.length, block = kFeatureBytes / sizeof(T);
#pragma omp parallel for schedule(static)
    for (int64_t j = first; j < last; ++j) {
        T *into = gphi + (j - first) * 3 * L;
        const T *own = gv + (j - first) * 3 * L;
        std::memset(into, 0, sizeof(T) * 3 * L);
        for (int64_t e = column[j]; e < column[j + 1]; ++e) std::memset(out + 4 * order[e], 0, sizeof(T) * 4);
        T total[3];
        for (int x = 0; x < 3; ++x) {
            V kept = {};
            for (int64_t f = 0; f < L; f += Lanes<T>::n) kept += load(own + x * L + f) * load(m.w + f);
            total[x] = sum<T>(kept);
        }
        for (int64_t f0 = 0; f0 < L; f0 += block) {
            const int64_t f1 = f0 + block < L ? f0 + block : L;
            for (int64_t p = column[j]; p < column[j + 1]; p += kTile) {
                const T *b[kTile], *db[kTile], *a[kTile], *t[kTile];
                T *o[kTile];
                const int count = column[j + 1] - p < kTile ? int(column[j + 1] - p) : kTile;
                for (int k = 0; k < count; ++k) {
                    const int64_t e = order[p + k], i = receiver[e] - first;
                    b[k] = basis + e * g.stride;
                    db[k] = slope + e * g.stride;
                    a[k] = gs + i * L;
                    t[k] = gv + i * 3 * L;
                    o[k] = out + 4 * e;
                }
                const T *from = phi + j * 3 * L, *v = v0 + 4 * j;
                if (count == kTile) {
                    send_back<T, K, kTile, kBiased>(m, g.values, b, db, a, t, from, v, f0, f1, into, total, o);
                } else {
                    send_back<T, K, 1, kBiased>(m, g.values, b, db, a, t, from, v, f0, f1, into, total, o);
                }
            }
        }
        for (int x = 0; x < 3; ++x) gv0[4 * j + x] = total[x];
    }
}

}  // namespace

// Edges by sender: those that leave atom j are order[column[j]:column[j+1]], in rising order.
extern "C" void hydragnn_transpose(int64_t atoms, int64_t edges, const int64_t *sender, int64_t *column, int64_t *order) {
    std::memset(column, 0, sizeof(int64_t) * (atoms + 1));
    for (int64_t e = 0; e < edges; ++e) ++column[sender[e]];
    int64_t total = 0;
    for (int64_t j = 0; j <= atoms; ++j) {
        total += column[j];
        column[j] = total;
    }
    for (int64_t e = edges; e-- > 0;) order[--column[sender[e]]] = e;
}

#define EXPORT(NAME, T)                                                                                                   \
    extern "C" void hydragnn_geometry_##NAME(int64_t edges, int64_t radial, double cutoff, const double *vec, T *basis,     \
                                             T *slope) {                                                                   \
        geometry<T>(edges, radial, cutoff, vec, basis, slope);                                                             \
    }                                                                                                                     \
    extern "C" void hydragnn_narrow_forward_##NAME(int64_t atoms, int64_t radial, const int64_t *row_ptr,                   \
                                                   const int64_t *sender, const int64_t *numbers, const T *basis,          \
                                                   const double *table, const double *filters, const double *p,            \
                                                   double *state, double *s0, T *v0) {                                     \
        narrow_forward<T>(atoms, {row_ptr, sender, radial + 1, radial + 4}, numbers, basis, narrow(table, filters, p),      \
                          state, s0, v0);                                                                                  \
    }                                                                                                                     \
    extern "C" void hydragnn_narrow_backward_##NAME(                                                                       \
        int64_t atoms, int64_t radial, const int64_t *row_ptr, const int64_t *sender, const int64_t *numbers,              \
        const T *basis, const T *slope, const double *vec, const double *table, const double *filters, const double *p,    \
        const double *state, const double *gs0, const T *gv0, const T *wide, T *out) {                                     \
        narrow_backward<T>(atoms, {row_ptr, sender, radial + 1, radial + 4}, numbers, basis, slope, vec,                   \
                           narrow(table, filters, p), state, gs0, gv0, wide, out);                                         \
    }                                                                                                                     \
    extern "C" void hydragnn_wide_forward_##NAME(int64_t first, int64_t last, int64_t radial, int64_t length,               \
                                                 const int64_t *row_ptr, const int64_t *sender, const T *basis,            \
                                                 const T *filters, const T *w, const T *beta, const T *phi, const T *v0,   \
                                                 const T *s1, T *sm, int64_t ld, T *vm) {                                  \
        const auto run = beta ? (radial == 4 ? wide_forward<T, 5, true> : wide_forward<T, 0, true>)                        \
                              : (radial == 4 ? wide_forward<T, 5, false> : wide_forward<T, 0, false>);                     \
        run(first, last, {row_ptr, sender, radial + 1, radial + 4}, basis, {length, filters, w, beta}, phi, v0, s1, sm,    \
            ld, vm);                                                                                                       \
    }                                                                                                                     \
    extern "C" void hydragnn_wide_backward_##NAME(                                                                         \
        int64_t first, int64_t last, int64_t radial, int64_t length, const int64_t *row_ptr, const int64_t *sender,        \
        const int64_t *receiver, const int64_t *column, const int64_t *order, const T *basis, const T *slope,              \
        const T *filters, const T *w, const T *beta, const T *phi, const T *v0, const T *gs, const T *gv, T *gphi, T *gv0, \
        T *out) {                                                                                                          \
        const auto run = beta ? (radial == 4 ? wide_backward<T, 5, true> : wide_backward<T, 0, true>)                      \
                              : (radial == 4 ? wide_backward<T, 5, false> : wide_backward<T, 0, false>);                   \
        run(first, last, {row_ptr, sender, radial + 1, radial + 4}, receiver, column, order, basis, slope,                 \
            {length, filters, w, beta}, phi, v0, gs, gv, gphi, gv0, out);                                                  \
    }
EXPORT(f32, float)
EXPORT(f64, double)
