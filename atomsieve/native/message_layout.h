// The groups of a message as types: atomsieve/models/messages/layout.py says what they are and in which order they stand.
//
// For an edge e from sender j to receiver i, with basis A_e [R], unit vector u_e [3] and filter weights Wf [R,G*F]:
//     w_l = A_e Wf_l,   out_l[i] = sum_e w_l * p_l[j] (carried)  or  sum_e w_l * p[j] * Y_l(u_e) (pushed).
// Edges are sorted by receiver and come in both directions, so the sum over edges that leave an atom is a sum over the
// edges that it receives, with u reversed: no scatter anywhere. Arrays are C-contiguous; members lead.
#pragma once
#include "message.h"

// Layouts that are compiled; the others go the general path.
#define MESSAGE_LAYOUTS(DO) DO(1) DO(7) DO(11) DO(16) DO(20) DO(25) DO(27) DO(31)

namespace {

constexpr int kPainn = 11;

// CODE: the sum of 1, 2, 4 for carried groups of order 0, 1, 2 and 8, 16 for pushed ones of order 1, 2.
template <int CODE> struct Layout {
    static constexpr bool c0 = CODE & 1, c1 = CODE & 2, c2 = CODE & 4, p1 = CODE & 8, p2 = CODE & 16;
    static constexpr bool o1 = c1 || p1, o2 = c2 || p2, any_pushed = p1 || p2;
    // First components in the payload: carried 0, pushed 1, pushed 2, carried 1, carried 2.
    static constexpr int x_p1 = c0, x_p2 = x_p1 + p1, x_c1 = x_p2 + p2, x_c2 = x_c1 + 3 * c1, inputs = x_c2 + 5 * c2;
    // Filters: carried 0, carried 1, pushed 1, carried 2, pushed 2.
    static constexpr int w_c1 = c0, w_p1 = w_c1 + c1, w_c2 = w_p1 + p1, w_p2 = w_c2 + c2, filters = w_p2 + p2;
    // First components in the result, by order.
    static constexpr int y_1 = c0, y_2 = y_1 + 3 * o1, outputs = y_2 + 5 * o2;
};

// Y_2(u) in the basis of atomsieve/models/messages/tensors.py.
template <class T> inline void second_order(const T *u, T *y) {
    constexpr T r2 = T(1.41421356237309504880), r6 = T(0.40824829046386301637), h2 = T(0.70710678118654752440);
    y[0] = r2 * u[0] * u[1];
    y[1] = r2 * u[1] * u[2];
    y[2] = r6 * (T(2) * u[2] * u[2] - u[0] * u[0] - u[1] * u[1]);
    y[3] = r2 * u[0] * u[2];
    y[4] = h2 * (u[0] * u[0] - u[1] * u[1]);
}

// Derivative of Y_2 along v.
template <class T> inline void second_order_tangent(const T *u, const T *v, T *y) {
    constexpr T r2 = T(1.41421356237309504880), r6 = T(0.81649658092772603273);
    y[0] = r2 * (u[0] * v[1] + u[1] * v[0]);
    y[1] = r2 * (u[1] * v[2] + u[2] * v[1]);
    y[2] = r6 * (T(2) * u[2] * v[2] - u[0] * v[0] - u[1] * v[1]);
    y[3] = r2 * (u[0] * v[2] + u[2] * v[0]);
    y[4] = r2 * (u[0] * v[0] - u[1] * v[1]);
}

// o += gradient by u of sum_m g_m Y_2(u)_m.
template <class T> inline void second_order_pull(const T *u, const T *g, T *o) {
    constexpr T r2 = T(1.41421356237309504880), r6 = T(0.81649658092772603273);
    const T xx = r2 * g[4] - r6 * g[2], yy = -r2 * g[4] - r6 * g[2];
    o[0] += xx * u[0] + r2 * (g[0] * u[1] + g[3] * u[2]);
    o[1] += yy * u[1] + r2 * (g[0] * u[0] + g[1] * u[2]);
    o[2] += T(2) * r6 * g[2] * u[2] + r2 * (g[1] * u[1] + g[3] * u[0]);
}

template <class T, int D> using Part = typename Lanes<T>::V[D];

template <class T, int D> inline void load_part(const T *p, int64_t F, Part<T, D> &v) {
    for (int k = 0; k < D; ++k) v[k] = load(p + k * F);
}

template <class T, int D> inline void store_part(T *p, int64_t F, const Part<T, D> &v) {
    for (int k = 0; k < D; ++k) store(p + k * F, v[k]);
}

// sum_k g_k Y_k, Y the numbers of an edge.
template <class T, int D> inline typename Lanes<T>::V along(const Part<T, D> &g, const T *Y) {
    typename Lanes<T>::V found = g[0] * Y[0];
    for (int k = 1; k < D; ++k) found = found + g[k] * Y[k];
    return found;
}

template <class T, int D> inline typename Lanes<T>::V dot(const Part<T, D> &g, const T *p, int64_t F) {
    typename Lanes<T>::V found = g[0] * load(p);
    for (int k = 1; k < D; ++k) found = found + g[k] * load(p + k * F);
    return found;
}

// One order of a message: D components; C: a group is carried, with filter wc and payload xc; P: one is pushed.
template <class T, int D, bool C, bool P> struct Order {
    using V = typename Lanes<T>::V;
    using Vs = Part<T, D>;
    static constexpr bool odd = D == 3;  // Y of the reverse edge has the other sign

    // y += w_c p_c + w_p p Y: what the receiver gets.
    static inline void receive(Vs &y, const T *wc, const T *wp, const T *xc, const T *xp, int64_t F, const T *Y) {
        V w = {}, pushed = {};
        if constexpr (C) w = load(wc);
        if constexpr (P) pushed = load(wp) * load(xp);
        for (int k = 0; k < D; ++k) {
            if constexpr (C && P) y[k] += w * load(xc + k * F) + pushed * Y[k];
            else if constexpr (C) y[k] += w * load(xc + k * F);
            else y[k] += pushed * Y[k];
        }
    }

    // The transpose: what the sender's payload gets back, by the reverse of an edge that it receives.
    static inline void send_back(Vs &qc, V &qp, const T *wc, const T *wp, const T *g, int64_t F, const T *Y) {
        Vs there;
        load_part<T, D>(g, F, there);
        if constexpr (P) {
            if constexpr (odd) qp -= load(wp) * along<T, D>(there, Y);
            else qp += load(wp) * along<T, D>(there, Y);
        }
        if constexpr (C) {
            const V w = load(wc);
            for (int k = 0; k < D; ++k) qc[k] += w * there[k];
        }
    }
};

// Where the rows of a block of atoms begin.
template <class T> struct Rows {
    const T *at[kBlock];
    Rows(const T *first, const int64_t *atoms, int64_t count, int64_t length) {
        for (int64_t e = 0; e < count; ++e) at[e] = first + atoms[e] * length;
    }
};

// Y_2 of a block of edges and, where `v` is given, its derivative along v.
template <class T, class M> struct SecondOrders {
    T y[M::p2 ? kBlock * 5 : 1], dot[M::p2 ? kBlock * 5 : 1];
    inline void set(const T *u, int64_t count, const T *v = nullptr) {
        if constexpr (M::p2) {
            for (int64_t e = 0; e < count; ++e) {
                second_order(u + 3 * e, y + 5 * e);
                if (v) second_order_tangent(u + 3 * e, v + 3 * e, dot + 5 * e);
            }
        }
    }
    inline const T *of(int64_t e) const { return M::p2 ? y + 5 * e : y; }
    inline const T *dot_of(int64_t e) const { return M::p2 ? dot + 5 * e : dot; }
};

// Add to gx what the edges that leave an atom send back: the reverses of a block that it receives, with filters w.
template <class T, class M>
inline void by_payload_of(const Rows<T> &far, const T *ue, const SecondOrders<T, M> &second, const T *w, int64_t count,
                          int64_t F, T *gx) {
    using V = typename Lanes<T>::V;
    constexpr int wide = M::filters;
    for (int64_t f = 0; f < F; f += Lanes<T>::n) {
        Part<T, 1> q0;
        Part<T, 3> q1;
        Part<T, 5> q2;
        V s1 = {}, s2 = {}, unused = {};
        if constexpr (M::c0) load_part<T, 1>(gx + f, F, q0);
        if constexpr (M::p1) s1 = load(gx + M::x_p1 * F + f);
        if constexpr (M::p2) s2 = load(gx + M::x_p2 * F + f);
        if constexpr (M::c1) load_part<T, 3>(gx + M::x_c1 * F + f, F, q1);
        if constexpr (M::c2) load_part<T, 5>(gx + M::x_c2 * F + f, F, q2);
        for (int64_t e = 0; e < count; ++e) {
            const T *gj = far.at[e] + f, *we = w + e * wide * F + f;
            if constexpr (M::c0) Order<T, 1, true, false>::send_back(q0, unused, we, we, gj, F, ue);
            if constexpr (M::o1)
                Order<T, 3, M::c1, M::p1>::send_back(q1, s1, we + M::w_c1 * F, we + M::w_p1 * F, gj + M::y_1 * F, F, ue + 3 * e);
            if constexpr (M::o2)
                Order<T, 5, M::c2, M::p2>::send_back(q2, s2, we + M::w_c2 * F, we + M::w_p2 * F, gj + M::y_2 * F, F, second.of(e));
        }
        if constexpr (M::c0) store_part<T, 1>(gx + f, F, q0);
        if constexpr (M::p1) store(gx + M::x_p1 * F + f, s1);
        if constexpr (M::p2) store(gx + M::x_p2 * F + f, s2);
        if constexpr (M::c1) store_part<T, 3>(gx + M::x_c1 * F + f, F, q1);
        if constexpr (M::c2) store_part<T, 5>(gx + M::x_c2 * F + f, F, q2);
    }
}

// o[k] = sum_f pushed[f] g_k[f]: the gradient by Y of an edge.
template <class T, int D> inline void by_direction(const T *pushed, const T *g, int64_t F, T *o) {
    Part<T, D> sums = {};
    for (int64_t f = 0; f < F; f += Lanes<T>::n) {
        const typename Lanes<T>::V p = load(pushed + f);
        for (int k = 0; k < D; ++k) sums[k] += p * load(g + k * F + f);
    }
    for (int k = 0; k < D; ++k) o[k] = sum<T>(sums[k]);
}

// Sum what the threads found, in the order of the threads.
template <class T> inline void add_partial(const std::vector<T> &partial, int64_t count, T *out) {
    std::memset(out, 0, sizeof(T) * count);
    for (int t = 0; t < threads(); ++t)
        for (int64_t k = 0; k < count; ++k) out[k] += partial[t * count + k];
}

// Call body with the layout of a code; whether there is one.
template <class Body> inline bool for_layout(int64_t code, Body body) {
    switch (code) {
#define CASE(CODE) case CODE: body(Layout<CODE>()); return true;
        MESSAGE_LAYOUTS(CASE)
#undef CASE
    }
    return false;
}

}  // namespace
