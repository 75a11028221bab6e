// The PaiNN message in training, over tiles of pairs: forward, backward for forces, tangent, and the reverse of both.
//
// Notation of message.cpp; for a pair (i, j) with filters w, their derivative w' by the distance, and direction u:
//     y_i += w_s p_s[j],  w_a q[j] + w_b p_b[j] u        y_j += w_s p_s[i],  w_a q[i] - w_b p_b[i] u     (eqs. 7, 8)
// Payload X [5F] = p_s, p_b, q_x, q_y, q_z; `first` layers have no vectors: X [2F] = p_s, p_b. Arrays of scalars of atoms
// have F values in rows of 2F where so said; those of vectors [3,F]. "eq.": Schuett, Unke and Gastegger, ICML 2021.
#include <algorithm>
#include <vector>

#include "painn_tiles.h"

namespace {

using namespace tiles;

template <class T> using Vec = typename Lanes<T>::V;

// Scalars and vectors of one atom for one register of channels.
template <class T> struct Message {
    Vec<T> s, v[3];
    Message() : s{}, v{} {}
    Message(const T *scalars, const T *vectors, int64_t F) : s(load(scalars)) {
        for (int x = 0; x < 3; ++x) v[x] = load(vectors + x * F);
    }
    Vec<T> along(const T *u) const { return v[0] * u[0] + v[1] * u[kPairs] + v[2] * u[2 * kPairs]; }
    void add_to(T *scalars, T *vectors, int64_t F) const {
        store(scalars, load(scalars) + s);
        for (int x = 0; x < 3; ++x) store(vectors + x * F, load(vectors + x * F) + v[x]);
    }
};

template <class T, bool first> struct Payload {
    static constexpr int kParts = first ? 2 : 5;
    Vec<T> s, b, q[3];
    Payload() : s{}, b{}, q{} {}
    Payload(const T *x, int64_t F) : s(load(x)), b(load(x + F)) {
        if constexpr (!first)
            for (int c = 0; c < 3; ++c) q[c] = load(x + (2 + c) * F);
    }
    void add_to(T *x, int64_t F) const {
        store(x, load(x) + s);
        store(x + F, load(x + F) + b);
        if constexpr (!first)
            for (int c = 0; c < 3; ++c) store(x + (2 + c) * F, load(x + (2 + c) * F) + q[c]);
    }
};

template <class T> inline Vec<T> dot(const Vec<T> *a, const Vec<T> *b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// S [N,2F] and Vs [N,3F] get the messages added.
template <class T, bool first> void forward(const Tiles &t, const T *X, const T *W, T *S, T *Vs) {
    const int64_t F = t.width, R = t.radial, P = Payload<T, first>::kParts * F;
    const T *basis = static_cast<const T *>(t.basis), *unit = static_cast<const T *>(t.unit);
    for_tiles(t, [&](int, int64_t m, int64_t begin, int64_t end) {
        const T *x = X + m * t.atoms * P, *weights = W + m * R * 3 * F;
        T *s = S + m * t.atoms * 2 * F, *v = Vs + m * t.atoms * 3 * F;
        for (int64_t n = begin; n < end; ++n) {
            const int64_t i = t.atom[n], *near = t.near + n * kPairs, *edge = t.edge + n * kPairs;
            const T *u = unit + n * 3 * kPairs;
            for (int64_t f = 0; f < F; f += Lanes<T>::n) {
                const Filters<T, first> w(basis + n * R * kPairs, R, weights + f, F);
                const Payload<T, first> pi(x + i * P + f, F);
                Message<T> to;
                for (int k = 0; k < kPairs && edge[k] >= 0; ++k) {
                    const int64_t j = near[k];
                    const Payload<T, first> pj(x + j * P + f, F);
                    Message<T> back;
                    const Vec<T> push = w.w[2][k] * pj.b, pull = w.w[2][k] * pi.b;
                    to.s += w.w[0][k] * pj.s;  // eq. 7
                    back.s = w.w[0][k] * pi.s;
                    for (int c = 0; c < 3; ++c) {  // eq. 8
                        to.v[c] += push * u[c * kPairs + k];
                        back.v[c] = -pull * u[c * kPairs + k];
                        if constexpr (!first) {
                            to.v[c] += w.w[1][k] * pj.q[c];
                            back.v[c] += w.w[1][k] * pi.q[c];
                        }
                    }
                    back.add_to(s + j * 2 * F + f, v + j * 3 * F + f, F);
                }
                to.add_to(s + i * 2 * F + f, v + i * 3 * F + f, F);
            }
        }
    });
}

// From gradients Gs [N,F], Gv [N,3F] by what atoms got: that by the payload (gX, which starts from zero; not of first
// layers), and those by the distance (gd [K,E]) and direction (gu [K,E,3]) of each pair, added at the edge that stands for it.
template <class T, bool first>
void pull(const Tiles &t, const T *X, const T *W, const T *Gs, const T *Gv, T *gX, T *gd, T *gu) {
    using V = Vec<T>;
    const int64_t F = t.width, R = t.radial, P = Payload<T, first>::kParts * F;
    const T *basis = static_cast<const T *>(t.basis), *slope = static_cast<const T *>(t.slope);
    const T *unit = static_cast<const T *>(t.unit);
    for_tiles(t, [&](int, int64_t m, int64_t begin, int64_t end) {
        const T *x = X + m * t.atoms * P, *weights = W + m * R * 3 * F;
        const T *gs = Gs + m * t.atoms * F, *gv = Gv + m * t.atoms * 3 * F;
        T *gx = gX + m * t.atoms * P;
        for (int64_t n = begin; n < end; ++n) {
            const int64_t i = t.atom[n], *near = t.near + n * kPairs, *edge = t.edge + n * kPairs;
            const T *u = unit + n * 3 * kPairs;
            V length[kPairs] = {}, turn[3][kPairs] = {};
            for (int64_t f = 0; f < F; f += Lanes<T>::n) {
                const Filters<T, first> w(basis + n * R * kPairs, R, weights + f, F);
                const Filters<T, first> d(slope + n * R * kPairs, R, weights + f, F);
                const Payload<T, first> pi(x + i * P + f, F);
                const Message<T> gi(gs + i * F + f, gv + i * 3 * F + f, F);
                Payload<T, first> to;
                for (int k = 0; k < kPairs && edge[k] >= 0; ++k) {
                    const int64_t j = near[k];
                    const Payload<T, first> pj(x + j * P + f, F);
                    const Message<T> gj(gs + j * F + f, gv + j * 3 * F + f, F);
                    const V ui = gi.along(u + k), uj = gj.along(u + k);
                    length[k] += d.w[0][k] * (gi.s * pj.s + gj.s * pi.s) + d.w[2][k] * (ui * pj.b - uj * pi.b);
                    if constexpr (!first) length[k] += d.w[1][k] * (dot<T>(gi.v, pj.q) + dot<T>(gj.v, pi.q));
                    for (int c = 0; c < 3; ++c) turn[c][k] += w.w[2][k] * (gi.v[c] * pj.b - gj.v[c] * pi.b);
                    if constexpr (!first) {  // eqs. 7, 8 transposed
                        Payload<T, first> back;
                        to.s += w.w[0][k] * gj.s;
                        back.s = w.w[0][k] * gi.s;
                        to.b -= w.w[2][k] * uj;
                        back.b = w.w[2][k] * ui;
                        for (int c = 0; c < 3; ++c) {
                            to.q[c] += w.w[1][k] * gj.v[c];
                            back.q[c] = w.w[1][k] * gi.v[c];
                        }
                        back.add_to(gx + j * P + f, F);
                    }
                }
                if constexpr (!first) to.add_to(gx + i * P + f, F);
            }
            for (int k = 0; k < kPairs && edge[k] >= 0; ++k) {
                const int64_t at = m * t.edges + edge[k];
                gd[at] += sum<T>(length[k]);
                for (int c = 0; c < 3; ++c) gu[3 * at + c] += sum<T>(turn[c][k]);
            }
        }
    });
}

// Basis of a tile along the tangent hd of its distances: [R,4].
template <class T> inline void lean(const Tiles &t, int64_t m, int64_t n, const T *hd, const T *hu, T *basis, T *unit) {
    const T *slope = static_cast<const T *>(t.slope) + n * t.radial * kPairs;
    for (int k = 0; k < kPairs; ++k) {
        const int64_t e = t.edge[n * kPairs + k], at = m * t.edges + e;
        for (int64_t r = 0; r < t.radial; ++r) basis[r * kPairs + k] = e < 0 ? T(0) : slope[r * kPairs + k] * hd[at];
        for (int c = 0; c < 3; ++c) unit[c * kPairs + k] = e < 0 ? T(0) : hu[3 * at + c];
    }
}

// Derivative of `forward` along tangents hX of the payload (first layers: none), hd [K,E] and hu [K,E,3] of the edges,
// added to S [N,2F] and Vs [N,3F].
template <class T, bool first>
void tangent(const Tiles &t, const T *X, const T *W, const T *hX, const T *hd, const T *hu, T *S, T *Vs) {
    const int64_t F = t.width, R = t.radial, P = Payload<T, first>::kParts * F;
    const T *basis = static_cast<const T *>(t.basis), *unit = static_cast<const T *>(t.unit);
    for_tiles(t, [&](int, int64_t m, int64_t begin, int64_t end) {
        const T *x = X + m * t.atoms * P, *hx = hX + m * t.atoms * P, *weights = W + m * R * 3 * F;
        T *s = S + m * t.atoms * 2 * F, *v = Vs + m * t.atoms * 3 * F;
        std::vector<T> lent(R * kPairs);
        T turned[3 * kPairs];
        for (int64_t n = begin; n < end; ++n) {
            const int64_t i = t.atom[n], *near = t.near + n * kPairs, *edge = t.edge + n * kPairs;
            const T *u = unit + n * 3 * kPairs;
            lean(t, m, n, hd, hu, lent.data(), turned);
            for (int64_t f = 0; f < F; f += Lanes<T>::n) {
                const Filters<T, first> w(basis + n * R * kPairs, R, weights + f, F);
                const Filters<T, first> d(lent.data(), R, weights + f, F);
                const Payload<T, first> pi(x + i * P + f, F);
                Payload<T, first> hi;
                if constexpr (!first) hi = Payload<T, first>(hx + i * P + f, F);
                Message<T> to;
                for (int k = 0; k < kPairs && edge[k] >= 0; ++k) {
                    const int64_t j = near[k];
                    const Payload<T, first> pj(x + j * P + f, F);
                    Payload<T, first> hj;
                    if constexpr (!first) hj = Payload<T, first>(hx + j * P + f, F);
                    Message<T> back;
                    to.s += d.w[0][k] * pj.s + w.w[0][k] * hj.s;
                    back.s = d.w[0][k] * pi.s + w.w[0][k] * hi.s;
                    const Vec<T> push = d.w[2][k] * pj.b + w.w[2][k] * hj.b, turn = w.w[2][k] * pj.b;
                    const Vec<T> pull = d.w[2][k] * pi.b + w.w[2][k] * hi.b, round = w.w[2][k] * pi.b;
                    for (int c = 0; c < 3; ++c) {
                        to.v[c] += push * u[c * kPairs + k] + turn * turned[c * kPairs + k];
                        back.v[c] = -pull * u[c * kPairs + k] - round * turned[c * kPairs + k];
                        if constexpr (!first) {
                            to.v[c] += d.w[1][k] * pj.q[c] + w.w[1][k] * hj.q[c];
                            back.v[c] += d.w[1][k] * pi.q[c] + w.w[1][k] * hi.q[c];
                        }
                    }
                    back.add_to(s + j * 2 * F + f, v + j * 3 * F + f, F);
                }
                to.add_to(s + i * 2 * F + f, v + i * 3 * F + f, F);
            }
        }
    });
}

// Derivatives of sum(Bs, Bv * messages), and if `twice` of sum(Gs, Gv * their tangents) too, by the payload (gX, which starts
// from zero) and by the weights of the filters (gW).
template <class T, bool first, bool twice>
void reverse(const Tiles &t, const T *X, const T *W, const T *Bs, const T *Bv, const T *hX, const T *hd, const T *hu, const T *Gs,
             const T *Gv, T *gX, T *gW) {
    using V = Vec<T>;
    const int64_t F = t.width, R = t.radial, P = Payload<T, first>::kParts * F, wide = 3 * F, size = t.members * R * wide;
    const T *basis = static_cast<const T *>(t.basis), *unit = static_cast<const T *>(t.unit);
    std::vector<T> partial(threads() * size, T(0));
    for_tiles(t, [&](int thread, int64_t m, int64_t begin, int64_t end) {
        const T *x = X + m * t.atoms * P, *weights = W + m * R * wide;
        const T *bs = Bs + m * t.atoms * F, *bv = Bv + m * t.atoms * 3 * F;
        const T *hx = hX + m * t.atoms * P, *gs = Gs + m * t.atoms * F, *gv = Gv + m * t.atoms * 3 * F;
        T *gx = gX + m * t.atoms * P, *gw = partial.data() + thread * size + m * R * wide;
        std::vector<T> lent(R * kPairs);
        T turned[3 * kPairs];
        for (int64_t n = begin; n < end; ++n) {
            const int64_t i = t.atom[n], *near = t.near + n * kPairs, *edge = t.edge + n * kPairs;
            const T *u = unit + n * 3 * kPairs, *a = basis + n * R * kPairs;
            if constexpr (twice) lean(t, m, n, hd, hu, lent.data(), turned);
            for (int64_t f = 0; f < F; f += Lanes<T>::n) {
                V c[3][kPairs] = {}, d[3][kPairs] = {};  // by the filters, and by their tangents
                const Filters<T, first> w(a, R, weights + f, F), l(twice ? lent.data() : a, twice ? R : 0, weights + f, F);
                const Payload<T, first> pi(x + i * P + f, F);
                const Message<T> bi(bs + i * F + f, bv + i * 3 * F + f, F);
                Message<T> gi;
                Payload<T, first> to, hi;
                if constexpr (twice) gi = Message<T>(gs + i * F + f, gv + i * 3 * F + f, F);
                if constexpr (twice && !first) hi = Payload<T, first>(hx + i * P + f, F);
                for (int k = 0; k < kPairs && edge[k] >= 0; ++k) {
                    const int64_t j = near[k];
                    const Payload<T, first> pj(x + j * P + f, F);
                    const Message<T> bj(bs + j * F + f, bv + j * 3 * F + f, F);
                    Payload<T, first> back;
                    const V ws = w.w[0][k], wa = w.w[1][k], wb = w.w[2][k];
                    const V ui = bi.along(u + k), uj = bj.along(u + k);
                    back.s = ws * bi.s;
                    V to_s = ws * bj.s, by_i = ui, by_j = uj;  // by_i, by_j: what the filter itself meets
                    V cs = bi.s * pj.s + bj.s * pi.s, ca = {};
                    if constexpr (!first) {
                        ca = dot<T>(bi.v, pj.q) + dot<T>(bj.v, pi.q);
                        for (int x = 0; x < 3; ++x) {
                            to.q[x] += wa * bj.v[x];
                            back.q[x] = wa * bi.v[x];
                        }
                    }
                    if constexpr (twice) {
                        const Message<T> gj(gs + j * F + f, gv + j * 3 * F + f, F);
                        const V ls = l.w[0][k], lb = l.w[2][k], gui = gi.along(u + k), guj = gj.along(u + k);
                        by_i += gi.along(turned + k);  // the direction's tangent
                        by_j += gj.along(turned + k);
                        to_s += ls * gj.s;
                        back.s += ls * gi.s;
                        to.b -= lb * guj;
                        back.b = lb * gui;
                        d[0][k] = gi.s * pj.s + gj.s * pi.s;
                        d[2][k] = gui * pj.b - guj * pi.b;
                        if constexpr (!first) {
                            const Payload<T, first> hj(hx + j * P + f, F);
                            const V la = l.w[1][k];
                            d[1][k] = dot<T>(gi.v, pj.q) + dot<T>(gj.v, pi.q);
                            cs += gi.s * hj.s + gj.s * hi.s;
                            ca += dot<T>(gi.v, hj.q) + dot<T>(gj.v, hi.q);
                            c[2][k] = gui * hj.b - guj * hi.b;
                            for (int x = 0; x < 3; ++x) {
                                to.q[x] += la * gj.v[x];
                                back.q[x] += la * gi.v[x];
                            }
                        }
                    }
                    c[0][k] = cs;
                    c[1][k] = ca;
                    c[2][k] += by_i * pj.b - by_j * pi.b;
                    to.s += to_s;
                    to.b -= wb * by_j;
                    back.b += wb * by_i;
                    back.add_to(gx + j * P + f, F);
                }
                to.add_to(gx + i * P + f, F);
                for (int g = 0; g < 3; g += first ? 2 : 1) {
                    if constexpr (twice) add_outer<T>(c[g], a, d[g], lent.data(), R, wide, gw + g * F + f);
                    else add_outer<T>(c[g], a, R, wide, gw + g * F + f);
                }
            }
        }
    });
    std::memset(gW, 0, sizeof(T) * size);
    for (int h = 0; h < threads(); ++h)
        for (int64_t k = 0; k < size; ++k) gW[k] += partial[h * size + k];
}

}  // namespace

#define EXPORT(NAME, T)                                                                                                  \
    extern "C" void painn_pairs_forward_##NAME(const Tiles *t, int64_t first, const T *X, const T *W, T *S, T *V) {      \
        first ? forward<T, true>(*t, X, W, S, V) : forward<T, false>(*t, X, W, S, V);                                    \
    }                                                                                                                    \
    extern "C" void painn_pairs_pull_##NAME(const Tiles *t, int64_t first, const T *X, const T *W, const T *Gs,          \
                                            const T *Gv, T *gX, T *gd, T *gu) {                                          \
        first ? pull<T, true>(*t, X, W, Gs, Gv, gX, gd, gu) : pull<T, false>(*t, X, W, Gs, Gv, gX, gd, gu);              \
    }                                                                                                                    \
    extern "C" void painn_pairs_tangent_##NAME(const Tiles *t, int64_t first, const T *X, const T *W, const T *hX,       \
                                               const T *hd, const T *hu, T *S, T *V) {                                   \
        first ? tangent<T, true>(*t, X, W, hX, hd, hu, S, V) : tangent<T, false>(*t, X, W, hX, hd, hu, S, V);            \
    }                                                                                                                    \
    extern "C" void painn_pairs_reverse_##NAME(const Tiles *t, int64_t first, const T *X, const T *W, const T *Bs,       \
                                               const T *Bv, const T *hX, const T *hd, const T *hu, const T *Gs,          \
                                               const T *Gv, T *gX, T *gW) {                                              \
        if (hd)                                                                                                          \
            first ? reverse<T, true, true>(*t, X, W, Bs, Bv, hX, hd, hu, Gs, Gv, gX, gW)                                 \
                  : reverse<T, false, true>(*t, X, W, Bs, Bv, hX, hd, hu, Gs, Gv, gX, gW);                               \
        else                                                                                                             \
            first ? reverse<T, true, false>(*t, X, W, Bs, Bv, hX, hd, hu, Gs, Gv, gX, gW)                                \
                  : reverse<T, false, false>(*t, X, W, Bs, Bv, hX, hd, hu, Gs, Gv, gX, gW);                              \
    }
EXPORT(f32, float)
EXPORT(f64, double)
