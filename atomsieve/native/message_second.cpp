// The second derivative of a message, for gradients of losses on forces: see message_layout.h and message.cpp.
#include "message_layout.h"

namespace {

// What a block of edges sends, differentiated along the tangent: gx [C_in F] += ...
template <class T, class M>
inline void sent_tangent(const Rows<T> &far, const T *ue, const T *ve, const SecondOrders<T, M> &second, const T *w,
                         const T *wd, int64_t count, int64_t F, T *gx) {
    using V = typename Lanes<T>::V;
    const int64_t wide = M::filters * F;
    for (int64_t f = 0; f < F; f += Lanes<T>::n) {
        Part<T, 1> q0;
        Part<T, 3> q1;
        Part<T, 5> q2;
        V s1 = {}, s2 = {};
        if constexpr (M::c0) load_part<T, 1>(gx + f, F, q0);
        if constexpr (M::p1) s1 = load(gx + M::x_p1 * F + f);
        if constexpr (M::p2) s2 = load(gx + M::x_p2 * F + f);
        if constexpr (M::c1) load_part<T, 3>(gx + M::x_c1 * F + f, F, q1);
        if constexpr (M::c2) load_part<T, 5>(gx + M::x_c2 * F + f, F, q2);
        for (int64_t e = 0; e < count; ++e) {
            const T *gj = far.at[e] + f, *we = w + e * wide + f, *de = wd + e * wide + f;
            if constexpr (M::c0) q0[0] += load(de) * load(gj);  // tangent of eq. 7's transpose
            if constexpr (M::o1) {
                Part<T, 3> g1;
                load_part<T, 3>(gj + M::y_1 * F, F, g1);
                if constexpr (M::p1) {
                    s1 -= load(de + M::w_p1 * F) * along<T, 3>(g1, ue + 3 * e);  // tangent of eq. 8's transpose, by the filter
                    s1 -= load(we + M::w_p1 * F) * along<T, 3>(g1, ve + 3 * e);  // the same, by the direction
                }
                if constexpr (M::c1) {
                    const V d = load(de + M::w_c1 * F);
                    for (int k = 0; k < 3; ++k) q1[k] += d * g1[k];
                }
            }
            if constexpr (M::o2) {
                Part<T, 5> g2;
                load_part<T, 5>(gj + M::y_2 * F, F, g2);
                if constexpr (M::p2) {
                    s2 += load(de + M::w_p2 * F) * along<T, 5>(g2, second.of(e));
                    s2 += load(we + M::w_p2 * F) * along<T, 5>(g2, second.dot_of(e));
                }
                if constexpr (M::c2) {
                    const V d = load(de + M::w_c2 * F);
                    for (int k = 0; k < 5; ++k) q2[k] += d * g2[k];
                }
            }
        }
        if constexpr (M::c0) store_part<T, 1>(gx + f, F, q0);
        if constexpr (M::p1) store(gx + M::x_p1 * F + f, s1);
        if constexpr (M::p2) store(gx + M::x_p2 * F + f, s2);
        if constexpr (M::c1) store_part<T, 3>(gx + M::x_c1 * F + f, F, q1);
        if constexpr (M::c2) store_part<T, 5>(gx + M::x_c2 * F + f, F, q2);
    }
}

// One order of what an atom receives, differentiated along the tangent (y), and the gradients by the filters: c along the
// basis' tangent, cd along the basis. Pointers stand at the channels of a vector.
template <class T, int D, bool C, bool P> struct Tangent {
    using V = typename Lanes<T>::V;
    static inline void add(Part<T, D> &y, const Part<T, D> &g, const T *x, const T *h, int xc, int xp, const T *w, const T *d,
                           int wc, int wp, T *c, T *cd, int64_t F, const T *Y, const T *Yd) {
        V grown = {}, turned = {}, a = {}, da = {};
        if constexpr (P) {
            const V p = load(x + xp * F), hp = load(h + xp * F), wb = load(w + wp * F);
            grown = load(d + wp * F) * p + wb * hp;
            turned = wb * p;
            const V iu = along<T, D>(g, Y), iv = along<T, D>(g, Yd);
            store(c + wp * F, iu * p);
            store(cd + wp * F, iv * p + iu * hp);
        }
        if constexpr (C) {
            a = load(w + wc * F);
            da = load(d + wc * F);
            store(c + wc * F, dot<T, D>(g, x + xc * F, F));
            store(cd + wc * F, dot<T, D>(g, h + xc * F, F));
        }
        for (int k = 0; k < D; ++k) {
            if constexpr (C && P)
                y[k] += da * load(x + (xc + k) * F) + a * load(h + (xc + k) * F) + grown * Y[k] + turned * Yd[k];  // tangent of eq. 8
            else if constexpr (C)
                y[k] += da * load(x + (xc + k) * F) + a * load(h + (xc + k) * F);
            else
                y[k] += grown * Y[k] + turned * Yd[k];
        }
    }
};

// Derivatives of sum(hX*gX) + sum(hA*gA) + sum(hu*gu), with gX, gA, gu as `vjp` gives them, with respect to G, X and Wf.
// hA must be equal, and hu opposite, on an edge and its reverse: true for whatever derives from forces and virials.
// hu may be null for layouts without directions.
template <class T, class M>
void second(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride, const T *Wf,
            const T *G, const T *hX, const T *hA, const T *hu, T *gG, T *gX, T *gW) {
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = M::filters * F, padded = padded_radial<T>(s);
    const int64_t n_weights = s.members * s.radial * wide;
    std::vector<T> partial(threads() * n_weights, T(0));
    for_rows(s, [&](int thread) {
        return [&, thread, scratch = Scratch<T>(s, wide, M::inputs)](int64_t m, int64_t first, int64_t last) mutable {
            const T *x = X + m * s.atoms * M::inputs * F, *hx = hX + m * s.atoms * M::inputs * F;
            const T *g = G + m * s.atoms * M::outputs * F;
            const T *a = A + m * a_stride, *unit = u + m * u_stride, *weights = Wf + m * s.radial * wide;
            const T *adot = hA + m * s.edges * s.radial, *udot = M::any_pushed ? hu + m * s.edges * 3 : unit;
            T *w = scratch.w.data(), *wd = scratch.w_dot.data(), *c = scratch.c.data(), *cd = scratch.c_dot.data();
            SecondOrders<T, M> second;
            for (int64_t i = first; i < last; ++i) {
                const T *gi = g + i * M::outputs * F;
                T *gg = gG + (m * s.atoms + i) * M::outputs * F, *gx = gX + (m * s.atoms + i) * M::inputs * F;
                std::memset(gg, 0, sizeof(T) * M::outputs * F);
                std::memset(gx, 0, sizeof(T) * M::inputs * F);
                for (int64_t e0 = csr.row_ptr[i]; e0 < csr.row_ptr[i + 1]; e0 += kBlock) {
                    const int64_t left = csr.row_ptr[i + 1] - e0;
                    const int64_t count = left < kBlock ? left : kBlock;
                    stage(a + e0 * s.radial, count, s.radial, padded, scratch.basis.data());
                    stage(adot + e0 * s.radial, count, s.radial, padded, scratch.basis_dot.data());
                    filter(scratch.basis.data(), count, s.radial, padded, weights, wide, w);
                    filter(scratch.basis_dot.data(), count, s.radial, padded, weights, wide, wd);
                    const int64_t *near = csr.sender + e0;
                    const T *ue = unit + e0 * 3, *ve = udot + e0 * 3;
                    const Rows<T> sent(x, near, count, M::inputs * F);
                    second.set(ue, count, ve);
                    const Rows<T> tangents(hx, near, count, M::inputs * F);
                    sent_tangent<T, M>({g, near, count, M::outputs * F}, ue, ve, second, w, wd, count, F, gx);
                    for (int64_t f = 0; f < F; f += L) {  // what it receives, and the filters' gradients
                        Part<T, 1> g0, y0;
                        Part<T, 3> g1, y1;
                        Part<T, 5> g2, y2;
                        if constexpr (M::c0) load_part<T, 1>(gi + f, F, g0), load_part<T, 1>(gg + f, F, y0);
                        if constexpr (M::o1)
                            load_part<T, 3>(gi + M::y_1 * F + f, F, g1), load_part<T, 3>(gg + M::y_1 * F + f, F, y1);
                        if constexpr (M::o2)
                            load_part<T, 5>(gi + M::y_2 * F + f, F, g2), load_part<T, 5>(gg + M::y_2 * F + f, F, y2);
                        for (int64_t e = 0; e < count; ++e) {
                            const T *xj = sent.at[e] + f, *hj = tangents.at[e] + f;
                            const T *we = w + e * wide + f, *de = wd + e * wide + f;
                            T *ce = c + e * wide + f, *ced = cd + e * wide + f;
                            if constexpr (M::c0)  // tangent of eq. 7
                                Tangent<T, 1, true, false>::add(y0, g0, xj, hj, 0, 0, we, de, 0, 0, ce, ced, F, ue, ve);
                            if constexpr (M::o1)
                                Tangent<T, 3, M::c1, M::p1>::add(y1, g1, xj, hj, M::x_c1, M::x_p1, we, de, M::w_c1, M::w_p1, ce,
                                                                 ced, F, ue + 3 * e, ve + 3 * e);
                            if constexpr (M::o2)
                                Tangent<T, 5, M::c2, M::p2>::add(y2, g2, xj, hj, M::x_c2, M::x_p2, we, de, M::w_c2, M::w_p2, ce,
                                                                 ced, F, second.of(e), second.dot_of(e));
                        }
                        if constexpr (M::c0) store_part<T, 1>(gg + f, F, y0);
                        if constexpr (M::o1) store_part<T, 3>(gg + M::y_1 * F + f, F, y1);
                        if constexpr (M::o2) store_part<T, 5>(gg + M::y_2 * F + f, F, y2);
                    }
                    T *into = partial.data() + thread * n_weights + m * s.radial * wide;
                    filter_grad_weights(scratch.basis_dot.data(), c, count, s.radial, padded, wide, into);
                    filter_grad_weights(scratch.basis.data(), cd, count, s.radial, padded, wide, into);
                }
            }
        };
    });
    add_partial(partial, n_weights, gW);
}

}  // namespace

#define EXPORT(NAME, T)                                                                                                  \
    extern "C" void message_second_##NAME(int64_t K, int64_t N, int64_t E, int64_t F, int64_t R, const int64_t *row_ptr,  \
                                          const int64_t *sender, const T *X, const T *A, int64_t as, const T *u,         \
                                          int64_t us, const T *W, const T *G, const T *hX, const T *hA, const T *hu,     \
                                          T *gG, T *gX, T *gW) {                                                         \
        second<T, Layout<kPainn>>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, G, hX, hA, hu, gG, gX, gW);    \
    }                                                                                                                    \
    extern "C" void layout_second_##NAME(int64_t code, int64_t K, int64_t N, int64_t E, int64_t F, int64_t R,             \
                                         const int64_t *row_ptr, const int64_t *sender, const T *X, const T *A,          \
                                         int64_t as, const T *u, int64_t us, const T *W, const T *G, const T *hX,        \
                                         const T *hA, const T *hu, T *gG, T *gX, T *gW) {                                \
        for_layout(code, [&](auto m) {                                                                                   \
            second<T, decltype(m)>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, G, hX, hA, hu, gG, gX, gW);   \
        });                                                                                                              \
    }
EXPORT(f32, float)
EXPORT(f64, double)
