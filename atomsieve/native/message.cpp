// The PaiNN message of a stack of members, and its first and second derivatives, without edge-wide temporaries.
// "eq." numbers are those of Schuett, Unke and Gastegger, ICML 2021; filters are linear in the basis, the cutoff part of it.
//
// For an edge e from sender j to receiver i, with basis A_e [R], unit vector u_e [3] and filter weights Wf [R,3F]:
//     (w_s, w_a, w_b) = A_e Wf,   ds_i = sum_e w_s * p_s[j],   dv_i = sum_e w_a * q[j] + w_b * p_b[j] (x) u_e
// Node payload X = [p_s, p_b, q_x, q_y, q_z] (5F), result Y = [ds, dv_x, dv_y, dv_z] (4F).
// Edges are sorted by receiver and come in both directions, so the sum over edges that leave an atom is a sum over the
// edges that it receives, with u reversed: no scatter anywhere. Arrays are C-contiguous; members lead.
#include "message.h"

namespace {

template <class T>
void forward(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride,
             const T *Wf, T *Y) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = 3 * F, padded = padded_radial<T>(s);
    for_rows(s, [&](int) {
        return [&, scratch = Scratch<T>(s)](int64_t m, int64_t first, int64_t last) mutable {
            const T *x = X + m * s.atoms * 5 * F, *a = A + m * a_stride, *unit = u + m * u_stride;
            const T *weights = Wf + m * s.radial * wide;
            T *w = scratch.w.data();
            for (int64_t i = first; i < last; ++i) {
                T *y = Y + (m * s.atoms + i) * 4 * F;
                std::memset(y, 0, sizeof(T) * 4 * F);
                for (int64_t e0 = csr.row_ptr[i]; e0 < csr.row_ptr[i + 1]; e0 += kBlock) {
                    const int64_t left = csr.row_ptr[i + 1] - e0;
                    const int count = left < kBlock ? int(left) : kBlock;
                    stage(a + e0 * s.radial, count, s.radial, padded, scratch.basis.data());
                    filter(scratch.basis.data(), count, s.radial, padded, weights, wide, w);
                    const int64_t *near = csr.sender + e0;
                    const T *ue = unit + e0 * 3;
                    for (int64_t f = 0; f < F; f += L) {
                        V ds = load(y + f), d0 = load(y + F + f), d1 = load(y + 2 * F + f), d2 = load(y + 3 * F + f);
                        for (int e = 0; e < count; ++e) {
                            const T *xj = x + near[e] * 5 * F + f, *we = w + e * wide + f;
                            const V wa = load(we + F), pushed = load(we + 2 * F) * load(xj + F);  // w_b p_b, the second sum of eq. 8
                            ds += load(we) * load(xj);  // eq. 7
                            d0 += wa * load(xj + 2 * F) + pushed * ue[3 * e];  // eq. 8
                            d1 += wa * load(xj + 3 * F) + pushed * ue[3 * e + 1];
                            d2 += wa * load(xj + 4 * F) + pushed * ue[3 * e + 2];
                        }
                        store(y + f, ds);
                        store(y + F + f, d0);
                        store(y + 2 * F + f, d1);
                        store(y + 3 * F + f, d2);
                    }
                }
            }
        };
    });
}

// Gradients of sum(G * Y). Each of gX, gA, gu, gW may be null. gA [K,E,R] and gu [K,E,3] are per member.
template <class T>
void vjp(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride, const T *Wf,
         const T *G, T *gX, T *gA, T *gu, T *gW) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = 3 * F, padded = padded_radial<T>(s);
    const int64_t n_weights = s.members * s.radial * wide;
    std::vector<T> partial(gW ? threads() * n_weights : 0, T(0));
    const bool edge_grads = gA || gu || gW;
    for_rows(s, [&](int thread) {
        return [&, thread, scratch = Scratch<T>(s), current = int64_t(-1)](int64_t m, int64_t first, int64_t last) mutable {
            const T *x = X + m * s.atoms * 5 * F, *g = G + m * s.atoms * 4 * F;
            const T *a = A + m * a_stride, *unit = u + m * u_stride, *weights = Wf + m * s.radial * wide;
            if (gA && current != m) scratch.transpose(weights, s);
            current = m;
            T *w = scratch.w.data(), *c = scratch.c.data();
            std::vector<T> &unused = scratch.row;
            for (int64_t i = first; i < last; ++i) {
                T *gx = gX ? gX + (m * s.atoms + i) * 5 * F : unused.data();
                std::memset(gx, 0, sizeof(T) * 5 * F);
                const T *gi = g + i * 4 * F;
                for (int64_t e0 = csr.row_ptr[i]; e0 < csr.row_ptr[i + 1]; e0 += kBlock) {
                    const int64_t left = csr.row_ptr[i + 1] - e0;
                    const int count = left < kBlock ? int(left) : kBlock;
                    stage(a + e0 * s.radial, count, s.radial, padded, scratch.basis.data());
                    filter(scratch.basis.data(), count, s.radial, padded, weights, wide, w);
                    const int64_t *near = csr.sender + e0;
                    const T *ue = unit + e0 * 3;
                    if (gX) by_payload(g, near, ue, w, count, F, gx);  // transpose of eqs. 7, 8
                    for (int64_t f = 0; edge_grads && f < F; f += L) {
                        const V gs = load(gi + f), g0 = load(gi + F + f), g1 = load(gi + 2 * F + f), g2 = load(gi + 3 * F + f);
                        for (int e = 0; e < count; ++e) {
                            const T *xj = x + near[e] * 5 * F + f;
                            T *ce = c + e * wide + f, *pushed = w + e * wide + 2 * F + f;
                            const V pb = load(xj + F);
                            store(ce, gs * load(xj));  // eq. 7 by w_s
                            store(ce + F, g0 * load(xj + 2 * F) + g1 * load(xj + 3 * F) + g2 * load(xj + 4 * F));  // eq. 8 by w_a
                            store(ce + 2 * F, (g0 * ue[3 * e] + g1 * ue[3 * e + 1] + g2 * ue[3 * e + 2]) * pb);  // eq. 8 by w_b
                            if (gu) store(pushed, load(pushed) * pb);
                        }
                    }
                    for (int e = 0; gu && e < count; ++e) {
                        const T *pushed = w + e * wide + 2 * F;
                        V s0 = {}, s1 = {}, s2 = {};
                        for (int64_t f = 0; f < F; f += L) {
                            const V p = load(pushed + f);
                            s0 += p * load(gi + F + f);  // eq. 8 by u_e
                            s1 += p * load(gi + 2 * F + f);
                            s2 += p * load(gi + 3 * F + f);
                        }
                        T *o = gu + (m * s.edges + e0 + e) * 3;
                        o[0] = sum<T>(s0);
                        o[1] = sum<T>(s1);
                        o[2] = sum<T>(s2);
                    }
                    if (gA) {
                        filter_grad_basis(c, count, padded, scratch.weights_t.data(), wide, scratch.grad_basis.data());
                        for (int e = 0; e < count; ++e)
                            std::memcpy(gA + (m * s.edges + e0 + e) * s.radial, scratch.grad_basis.data() + e * padded,
                                        sizeof(T) * s.radial);
                    }
                    if (gW)
                        filter_grad_weights(scratch.basis.data(), c, count, s.radial, padded, wide,
                                            partial.data() + thread * n_weights + m * s.radial * wide);
                }
            }
        };
    });
    if (gW) {
        std::memset(gW, 0, sizeof(T) * n_weights);
        for (int t = 0; t < threads(); ++t)
            for (int64_t k = 0; k < n_weights; ++k) gW[k] += partial[t * n_weights + k];
    }
}

// Derivatives of sum(hX*gX) + sum(hA*gA) + sum(hu*gu), with gX, gA, gu as `vjp` gives them, with respect to G, X and Wf.
// hA must be equal, and hu opposite, on an edge and its reverse: true for whatever derives from forces and virials.
template <class T>
void second(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride, const T *Wf,
            const T *G, const T *hX, const T *hA, const T *hu, T *gG, T *gX, T *gW) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = 3 * F, padded = padded_radial<T>(s);
    const int64_t n_weights = s.members * s.radial * wide;
    std::vector<T> partial(threads() * n_weights, T(0));
    for_rows(s, [&](int thread) {
        return [&, thread, scratch = Scratch<T>(s)](int64_t m, int64_t first, int64_t last) mutable {
            const T *x = X + m * s.atoms * 5 * F, *g = G + m * s.atoms * 4 * F, *hx = hX + m * s.atoms * 5 * F;
            const T *a = A + m * a_stride, *unit = u + m * u_stride, *weights = Wf + m * s.radial * wide;
            const T *adot = hA + m * s.edges * s.radial, *udot = hu + m * s.edges * 3;
            T *w = scratch.w.data(), *wd = scratch.w_dot.data(), *c = scratch.c.data(), *cd = scratch.c_dot.data();
            for (int64_t i = first; i < last; ++i) {
                const T *gi = g + i * 4 * F;
                T *gg = gG + (m * s.atoms + i) * 4 * F, *gx = gX + (m * s.atoms + i) * 5 * F;
                std::memset(gg, 0, sizeof(T) * 4 * F);
                std::memset(gx, 0, sizeof(T) * 5 * F);
                for (int64_t e0 = csr.row_ptr[i]; e0 < csr.row_ptr[i + 1]; e0 += kBlock) {
                    const int64_t left = csr.row_ptr[i + 1] - e0;
                    const int count = left < kBlock ? int(left) : kBlock;
                    stage(a + e0 * s.radial, count, s.radial, padded, scratch.basis.data());
                    stage(adot + e0 * s.radial, count, s.radial, padded, scratch.basis_dot.data());
                    filter(scratch.basis.data(), count, s.radial, padded, weights, wide, w);
                    filter(scratch.basis_dot.data(), count, s.radial, padded, weights, wide, wd);
                    const int64_t *near = csr.sender + e0;
                    const T *ue = unit + e0 * 3, *ve = udot + e0 * 3;
                    for (int64_t f = 0; f < F; f += L) {  // what the row's atom sends, differentiated along the tangent
                        V xs = load(gx + f), xb = load(gx + F + f);
                        V q0 = load(gx + 2 * F + f), q1 = load(gx + 3 * F + f), q2 = load(gx + 4 * F + f);
                        for (int e = 0; e < count; ++e) {
                            const T *gj = g + near[e] * 4 * F + f, *we = w + e * wide + f, *de = wd + e * wide + f;
                            const T *u0 = ue + 3 * e, *v0 = ve + 3 * e;
                            const V g0 = load(gj + F), g1 = load(gj + 2 * F), g2 = load(gj + 3 * F), da = load(de + F);
                            xs += load(de) * load(gj);  // tangent of eq. 7's transpose
                            xb -= load(de + 2 * F) * (g0 * u0[0] + g1 * u0[1] + g2 * u0[2]);  // tangent of eq. 8's transpose, by the filter
                            xb -= load(we + 2 * F) * (g0 * v0[0] + g1 * v0[1] + g2 * v0[2]);  // the same, by the direction
                            q0 += da * g0;
                            q1 += da * g1;
                            q2 += da * g2;
                        }
                        store(gx + f, xs);
                        store(gx + F + f, xb);
                        store(gx + 2 * F + f, q0);
                        store(gx + 3 * F + f, q1);
                        store(gx + 4 * F + f, q2);
                    }
                    for (int64_t f = 0; f < F; f += L) {  // what it receives, and the filters' gradients
                        const V gs = load(gi + f), g0 = load(gi + F + f), g1 = load(gi + 2 * F + f), g2 = load(gi + 3 * F + f);
                        V ys = load(gg + f), y0 = load(gg + F + f), y1 = load(gg + 2 * F + f), y2 = load(gg + 3 * F + f);
                        for (int e = 0; e < count; ++e) {
                            const T *xj = x + near[e] * 5 * F + f, *hj = hx + near[e] * 5 * F + f;
                            const T *we = w + e * wide + f, *de = wd + e * wide + f, *u0 = ue + 3 * e, *v0 = ve + 3 * e;
                            T *ce = c + e * wide + f, *ced = cd + e * wide + f;
                            const V ps = load(xj), hs = load(hj), pb = load(xj + F), hb = load(hj + F);
                            ys += load(de) * ps + load(we) * hs;  // tangent of eq. 7
                            store(ce, gs * ps);
                            store(ced, gs * hs);
                            const V along = load(de + 2 * F) * pb + load(we + 2 * F) * hb, turned = load(we + 2 * F) * pb;
                            const V iu = g0 * u0[0] + g1 * u0[1] + g2 * u0[2], iv = g0 * v0[0] + g1 * v0[1] + g2 * v0[2];
                            store(ce + 2 * F, iu * pb);
                            store(ced + 2 * F, iv * pb + iu * hb);
                            const V wa = load(we + F), da = load(de + F);
                            const V p0 = load(xj + 2 * F), p1 = load(xj + 3 * F), p2 = load(xj + 4 * F);
                            const V h0 = load(hj + 2 * F), h1 = load(hj + 3 * F), h2 = load(hj + 4 * F);
                            store(ce + F, g0 * p0 + g1 * p1 + g2 * p2);
                            store(ced + F, g0 * h0 + g1 * h1 + g2 * h2);
                            y0 += da * p0 + wa * h0 + along * u0[0] + turned * v0[0];  // tangent of eq. 8
                            y1 += da * p1 + wa * h1 + along * u0[1] + turned * v0[1];
                            y2 += da * p2 + wa * h2 + along * u0[2] + turned * v0[2];
                        }
                        store(gg + f, ys);
                        store(gg + F + f, y0);
                        store(gg + 2 * F + f, y1);
                        store(gg + 3 * F + f, y2);
                    }
                    T *into = partial.data() + thread * n_weights + m * s.radial * wide;
                    filter_grad_weights(scratch.basis_dot.data(), c, count, s.radial, padded, wide, into);
                    filter_grad_weights(scratch.basis.data(), cd, count, s.radial, padded, wide, into);
                }
            }
        };
    });
    std::memset(gW, 0, sizeof(T) * n_weights);
    for (int t = 0; t < threads(); ++t)
        for (int64_t k = 0; k < n_weights; ++k) gW[k] += partial[t * n_weights + k];
}

}  // namespace

#define EXPORT(NAME, T)                                                                                                  \
    extern "C" void message_forward_##NAME(int64_t K, int64_t N, int64_t E, int64_t F, int64_t R, const int64_t *row_ptr, \
                                           const int64_t *sender, const T *X, const T *A, int64_t as, const T *u,        \
                                           int64_t us, const T *W, T *Y) {                                               \
        forward<T>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, Y);                                           \
    }                                                                                                                    \
    extern "C" void message_vjp_##NAME(int64_t K, int64_t N, int64_t E, int64_t F, int64_t R, const int64_t *row_ptr,     \
                                       const int64_t *sender, const T *X, const T *A, int64_t as, const T *u, int64_t us, \
                                       const T *W, const T *G, T *gX, T *gA, T *gu, T *gW) {                             \
        vjp<T>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, G, gX, gA, gu, gW);                               \
    }                                                                                                                    \
    extern "C" void message_second_##NAME(int64_t K, int64_t N, int64_t E, int64_t F, int64_t R, const int64_t *row_ptr,  \
                                          const int64_t *sender, const T *X, const T *A, int64_t as, const T *u,         \
                                          int64_t us, const T *W, const T *G, const T *hX, const T *hA, const T *hu,     \
                                          T *gG, T *gX, T *gW) {                                                         \
        second<T>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, G, hX, hA, hu, gG, gX, gW);                    \
    }
EXPORT(f32, float)
EXPORT(f64, double)
