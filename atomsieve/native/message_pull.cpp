// The backward pass of a message for forces alone: see message_layout.h and message.cpp for what the message is.
#include "message_layout.h"

namespace {

// Gradients as of `vjp`, for forces alone: by the payload, by the distance of each edge as far as it acts through the basis
// (gd [K,E]), and by its direction (gu [K,E,3], null for layouts without directions). dA [E,R] is the derivative of the
// basis by the distance: filters of it serve instead of a gradient for every radial function.
template <class T, class M>
void pull(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride, const T *Wf,
          const T *dA, const T *G, T *gX, T *gd, T *gu) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = M::filters * F, padded = padded_radial<T>(s);
    for_rows(s, [&](int) {
        return [&, scratch = Scratch<T>(s, wide, M::inputs)](int64_t m, int64_t first, int64_t last) mutable {
            const T *x = X + m * s.atoms * M::inputs * F, *g = G + m * s.atoms * M::outputs * F;
            const T *a = A + m * a_stride, *unit = u + m * u_stride;
            const T *weights = Wf + m * s.radial * wide;
            T *w = scratch.w.data(), *dw = scratch.w_dot.data();
            SecondOrders<T, M> second;
            for (int64_t i = first; i < last; ++i) {
                T *gx = gX + (m * s.atoms + i) * M::inputs * F;
                std::memset(gx, 0, sizeof(T) * M::inputs * F);
                const T *gi = g + i * M::outputs * F;
                for (int64_t e0 = csr.row_ptr[i]; e0 < csr.row_ptr[i + 1]; e0 += kBlock) {
                    const int64_t left = csr.row_ptr[i + 1] - e0;
                    const int64_t count = left < kBlock ? left : kBlock;
                    stage(a + e0 * s.radial, count, s.radial, padded, scratch.basis.data());
                    stage(dA + e0 * s.radial, count, s.radial, padded, scratch.basis_dot.data());
                    filter(scratch.basis.data(), count, s.radial, padded, weights, wide, w);
                    filter(scratch.basis_dot.data(), count, s.radial, padded, weights, wide, dw);
                    const int64_t *near = csr.sender + e0;
                    const T *ue = unit + e0 * 3;
                    const Rows<T> sent(x, near, count, M::inputs * F);
                    second.set(ue, count);
                    by_payload_of<T, M>({g, near, count, M::outputs * F}, ue, second, w, count, F, gx);
                    for (int64_t e = 0; e < count; ++e) {
                        const T *xj = sent.at[e], *we = w + e * wide, *de = dw + e * wide;
                        V length = {};
                        Part<T, 3> s1 = {};
                        Part<T, 5> s2 = {};
                        for (int64_t f = 0; f < F; f += L) {
                            Part<T, 3> g1;
                            Part<T, 5> g2;
                            if constexpr (M::o1) load_part<T, 3>(gi + M::y_1 * F + f, F, g1);
                            if constexpr (M::p1) {
                                const V pushed = load(we + M::w_p1 * F + f) * load(xj + M::x_p1 * F + f);
                                for (int k = 0; k < 3; ++k) s1[k] += pushed * g1[k];  // eq. 8 (message.cpp) by u_e
                            }
                            if constexpr (M::c0) length += load(de + f) * (load(gi + f) * load(xj + f));  // eq. 7 by the distance
                            if constexpr (M::c1)  // eq. 8, first sum, by the distance
                                length += load(de + M::w_c1 * F + f) * dot<T, 3>(g1, xj + M::x_c1 * F + f, F);
                            if constexpr (M::p1)  // eq. 8, second sum, by the distance
                                length += load(de + M::w_p1 * F + f) * (along<T, 3>(g1, ue + 3 * e) * load(xj + M::x_p1 * F + f));
                            if constexpr (M::o2) load_part<T, 5>(gi + M::y_2 * F + f, F, g2);
                            if constexpr (M::c2) length += load(de + M::w_c2 * F + f) * dot<T, 5>(g2, xj + M::x_c2 * F + f, F);
                            if constexpr (M::p2) {
                                const V p = load(xj + M::x_p2 * F + f), pushed = load(we + M::w_p2 * F + f) * p;
                                for (int k = 0; k < 5; ++k) s2[k] += pushed * g2[k];
                                length += load(de + M::w_p2 * F + f) * (along<T, 5>(g2, second.of(e)) * p);
                            }
                        }
                        gd[m * s.edges + e0 + e] = sum<T>(length);
                        if constexpr (M::any_pushed) {
                            T *o = gu + (m * s.edges + e0 + e) * 3;
                            for (int k = 0; k < 3; ++k) o[k] = M::p1 ? sum<T>(s1[k]) : T(0);
                            if constexpr (M::p2) {
                                T of_y[5];
                                for (int k = 0; k < 5; ++k) of_y[k] = sum<T>(s2[k]);
                                second_order_pull(ue + 3 * e, of_y, o);
                            }
                        }
                    }
                }
            }
        };
    });
}

}  // namespace

#define EXPORT(NAME, T)                                                                                                  \
    extern "C" void message_pull_##NAME(int64_t K, int64_t N, int64_t E, int64_t F, int64_t R, const int64_t *row_ptr,    \
                                        const int64_t *sender, const T *X, const T *A, int64_t as, const T *u,           \
                                        int64_t us, const T *W, const T *D, const T *G, T *gX, T *gd, T *gu) {           \
        pull<T, Layout<kPainn>>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, D, G, gX, gd, gu);               \
    }                                                                                                                    \
    extern "C" void layout_pull_##NAME(int64_t code, int64_t K, int64_t N, int64_t E, int64_t F, int64_t R,               \
                                       const int64_t *row_ptr, const int64_t *sender, const T *X, const T *A, int64_t as, \
                                       const T *u, int64_t us, const T *W, const T *D, const T *G, T *gX, T *gd, T *gu) { \
        for_layout(code, [&](auto m) {                                                                                   \
            pull<T, decltype(m)>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, D, G, gX, gd, gu);              \
        });                                                                                                              \
    }
EXPORT(f32, float)
EXPORT(f64, double)
