// The message of a stack of members, and its first derivative, without edge-wide temporaries: see message_layout.h.
//
// The layout of PaiNN has entries of its own. "eq." numbers are those of Schuett, Unke and Gastegger, ICML 2021:
//     (w_s, w_a, w_b) = A_e Wf,   ds_i = sum_e w_s * p_s[j],   dv_i = sum_e w_a * q[j] + w_b * p_b[j] (x) u_e    eqs. 7, 8
// with payload X = [p_s, p_b, q_x, q_y, q_z] (5F) and result Y = [ds, dv_x, dv_y, dv_z] (4F).
#include "message_layout.h"

namespace {

template <class T, class M>
void forward(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride,
             const T *Wf, T *Y) {
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = M::filters * F, padded = padded_radial<T>(s);
    for_rows(s, [&](int) {
        return [&, scratch = Scratch<T>(s, wide, M::inputs)](int64_t m, int64_t first, int64_t last) mutable {
            const T *x = X + m * s.atoms * M::inputs * F, *a = A + m * a_stride, *unit = u + m * u_stride;
            const T *weights = Wf + m * s.radial * wide;
            T *w = scratch.w.data();
            SecondOrders<T, M> second;
            for (int64_t i = first; i < last; ++i) {
                T *y = Y + (m * s.atoms + i) * M::outputs * F;
                std::memset(y, 0, sizeof(T) * M::outputs * F);
                for (int64_t e0 = csr.row_ptr[i]; e0 < csr.row_ptr[i + 1]; e0 += kBlock) {
                    const int64_t left = csr.row_ptr[i + 1] - e0;
                    const int64_t count = left < kBlock ? left : kBlock;
                    stage(a + e0 * s.radial, count, s.radial, padded, scratch.basis.data());
                    filter(scratch.basis.data(), count, s.radial, padded, weights, wide, w);
                    const int64_t *near = csr.sender + e0;
                    const T *ue = unit + e0 * 3;
                    const Rows<T> sent(x, near, count, M::inputs * F);
                    second.set(ue, count);
                    for (int64_t f = 0; f < F; f += L) {
                        Part<T, 1> y0;
                        Part<T, 3> y1;
                        Part<T, 5> y2;
                        if constexpr (M::c0) load_part<T, 1>(y + f, F, y0);
                        if constexpr (M::o1) load_part<T, 3>(y + M::y_1 * F + f, F, y1);
                        if constexpr (M::o2) load_part<T, 5>(y + M::y_2 * F + f, F, y2);
                        for (int64_t e = 0; e < count; ++e) {
                            const T *xj = sent.at[e] + f, *we = w + e * wide + f;
                            if constexpr (M::c0) Order<T, 1, true, false>::receive(y0, we, we, xj, xj, F, ue);  // eq. 7
                            if constexpr (M::o1)  // eq. 8
                                Order<T, 3, M::c1, M::p1>::receive(y1, we + M::w_c1 * F, we + M::w_p1 * F, xj + M::x_c1 * F,
                                                                   xj + M::x_p1 * F, F, ue + 3 * e);
                            if constexpr (M::o2)
                                Order<T, 5, M::c2, M::p2>::receive(y2, we + M::w_c2 * F, we + M::w_p2 * F, xj + M::x_c2 * F,
                                                                   xj + M::x_p2 * F, F, second.of(e));
                        }
                        if constexpr (M::c0) store_part<T, 1>(y + f, F, y0);
                        if constexpr (M::o1) store_part<T, 3>(y + M::y_1 * F + f, F, y1);
                        if constexpr (M::o2) store_part<T, 5>(y + M::y_2 * F + f, F, y2);
                    }
                }
            }
        };
    });
}

// Gradients of sum(G * Y). Each of gX, gA, gu, gW may be null. gA [K,E,R] and gu [K,E,3] are per member.
template <class T, class M>
void vjp(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride, const T *Wf,
         const T *G, T *gX, T *gA, T *gu, T *gW) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = M::filters * F, padded = padded_radial<T>(s);
    const int64_t n_weights = s.members * s.radial * wide;
    std::vector<T> partial(gW ? threads() * n_weights : 0, T(0));
    const bool edge_grads = gA || gu || gW;
    for_rows(s, [&](int thread) {
        return [&, thread, scratch = Scratch<T>(s, wide, M::inputs), current = int64_t(-1)](int64_t m, int64_t first,
                                                                                            int64_t last) mutable {
            const T *x = X + m * s.atoms * M::inputs * F, *g = G + m * s.atoms * M::outputs * F;
            const T *a = A + m * a_stride, *unit = u + m * u_stride, *weights = Wf + m * s.radial * wide;
            if (gA && current != m) scratch.transpose(weights, s, wide);
            current = m;
            T *w = scratch.w.data(), *c = scratch.c.data();
            std::vector<T> &unused = scratch.row;
            SecondOrders<T, M> second;
            for (int64_t i = first; i < last; ++i) {
                T *gx = gX ? gX + (m * s.atoms + i) * M::inputs * F : unused.data();
                std::memset(gx, 0, sizeof(T) * M::inputs * F);
                const T *gi = g + i * M::outputs * F;
                for (int64_t e0 = csr.row_ptr[i]; e0 < csr.row_ptr[i + 1]; e0 += kBlock) {
                    const int64_t left = csr.row_ptr[i + 1] - e0;
                    const int64_t count = left < kBlock ? left : kBlock;
                    stage(a + e0 * s.radial, count, s.radial, padded, scratch.basis.data());
                    filter(scratch.basis.data(), count, s.radial, padded, weights, wide, w);
                    const int64_t *near = csr.sender + e0;
                    const T *ue = unit + e0 * 3;
                    const Rows<T> sent(x, near, count, M::inputs * F);
                    second.set(ue, count);
                    if (gX) by_payload_of<T, M>({g, near, count, M::outputs * F}, ue, second, w, count, F, gx);  // transpose of eqs. 7, 8
                    for (int64_t f = 0; edge_grads && f < F; f += L) {
                        Part<T, 1> g0;
                        Part<T, 3> g1;
                        Part<T, 5> g2;
                        if constexpr (M::c0) load_part<T, 1>(gi + f, F, g0);
                        if constexpr (M::o1) load_part<T, 3>(gi + M::y_1 * F + f, F, g1);
                        if constexpr (M::o2) load_part<T, 5>(gi + M::y_2 * F + f, F, g2);
                        for (int64_t e = 0; e < count; ++e) {
                            const T *xj = sent.at[e] + f;
                            T *ce = c + e * wide + f, *we = w + e * wide + f;
                            if constexpr (M::c0) store(ce, dot<T, 1>(g0, xj, F));  // eq. 7 by w_s
                            if constexpr (M::c1) store(ce + M::w_c1 * F, dot<T, 3>(g1, xj + M::x_c1 * F, F));  // eq. 8 by w_a
                            if constexpr (M::p1) {
                                const V p = load(xj + M::x_p1 * F);
                                store(ce + M::w_p1 * F, along<T, 3>(g1, ue + 3 * e) * p);  // eq. 8 by w_b
                                if (gu) store(we + M::w_p1 * F, load(we + M::w_p1 * F) * p);
                            }
                            if constexpr (M::c2) store(ce + M::w_c2 * F, dot<T, 5>(g2, xj + M::x_c2 * F, F));
                            if constexpr (M::p2) {
                                const V p = load(xj + M::x_p2 * F);
                                store(ce + M::w_p2 * F, along<T, 5>(g2, second.of(e)) * p);
                                if (gu) store(we + M::w_p2 * F, load(we + M::w_p2 * F) * p);
                            }
                        }
                    }
                    for (int64_t e = 0; M::any_pushed && gu && e < count; ++e) {  // eq. 8 by u_e
                        T *o = gu + (m * s.edges + e0 + e) * 3;
                        o[0] = o[1] = o[2] = T(0);
                        if constexpr (M::p1) by_direction<T, 3>(w + e * wide + M::w_p1 * F, gi + M::y_1 * F, F, o);
                        if constexpr (M::p2) {
                            T of_y[5];
                            by_direction<T, 5>(w + e * wide + M::w_p2 * F, gi + M::y_2 * F, F, of_y);
                            second_order_pull(ue + 3 * e, of_y, o);
                        }
                    }
                    if (gA) {
                        filter_grad_basis(c, count, padded, scratch.weights_t.data(), wide, scratch.grad_basis.data());
                        for (int64_t e = 0; e < count; ++e)
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
    if (gW) add_partial(partial, n_weights, gW);
}

}  // namespace

#define EXPORT(NAME, T)                                                                                                  \
    extern "C" void message_forward_##NAME(int64_t K, int64_t N, int64_t E, int64_t F, int64_t R, const int64_t *row_ptr, \
                                           const int64_t *sender, const T *X, const T *A, int64_t as, const T *u,        \
                                           int64_t us, const T *W, T *Y) {                                               \
        forward<T, Layout<kPainn>>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, Y);                           \
    }                                                                                                                    \
    extern "C" void message_vjp_##NAME(int64_t K, int64_t N, int64_t E, int64_t F, int64_t R, const int64_t *row_ptr,     \
                                       const int64_t *sender, const T *X, const T *A, int64_t as, const T *u, int64_t us, \
                                       const T *W, const T *G, T *gX, T *gA, T *gu, T *gW) {                             \
        vjp<T, Layout<kPainn>>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, G, gX, gA, gu, gW);               \
    }                                                                                                                    \
    extern "C" void layout_forward_##NAME(int64_t code, int64_t K, int64_t N, int64_t E, int64_t F, int64_t R,            \
                                          const int64_t *row_ptr, const int64_t *sender, const T *X, const T *A,         \
                                          int64_t as, const T *u, int64_t us, const T *W, T *Y) {                        \
        for_layout(code, [&](auto m) {                                                                                   \
            forward<T, decltype(m)>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, Y);                          \
        });                                                                                                              \
    }                                                                                                                    \
    extern "C" void layout_vjp_##NAME(int64_t code, int64_t K, int64_t N, int64_t E, int64_t F, int64_t R,                \
                                      const int64_t *row_ptr, const int64_t *sender, const T *X, const T *A, int64_t as, \
                                      const T *u, int64_t us, const T *W, const T *G, T *gX, T *gA, T *gu, T *gW) {      \
        for_layout(code, [&](auto m) {                                                                                   \
            vjp<T, decltype(m)>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, G, gX, gA, gu, gW);              \
        });                                                                                                              \
    }
EXPORT(f32, float)
EXPORT(f64, double)

extern "C" int64_t layout_serves(int64_t code) { return for_layout(code, [](auto) {}); }
