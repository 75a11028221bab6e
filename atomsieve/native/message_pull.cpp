// The backward pass of the PaiNN message for forces alone: see message.cpp for what the message is.
#include "message.h"

namespace {

// Gradients as of `vjp`, for forces alone: by the payload, by the distance of each edge as far as it acts through the basis
// (gd [K,E]), and by its direction. dA [E,R] is the derivative of the basis by the distance: filters of it serve instead of a
// gradient for every radial function.
template <class T>
void pull(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride, const T *Wf,
          const T *dA, const T *G, T *gX, T *gd, T *gu) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = 3 * F, padded = padded_radial<T>(s);
    for_rows(s, [&](int) {
        return [&, scratch = Scratch<T>(s)](int64_t m, int64_t first, int64_t last) mutable {
            const T *x = X + m * s.atoms * 5 * F, *g = G + m * s.atoms * 4 * F;
            const T *a = A + m * a_stride, *unit = u + m * u_stride;
            const T *weights = Wf + m * s.radial * wide;
            T *w = scratch.w.data(), *dw = scratch.w_dot.data();
            for (int64_t i = first; i < last; ++i) {
                T *gx = gX + (m * s.atoms + i) * 5 * F;
                std::memset(gx, 0, sizeof(T) * 5 * F);
                const T *gi = g + i * 4 * F;
                for (int64_t e0 = csr.row_ptr[i]; e0 < csr.row_ptr[i + 1]; e0 += kBlock) {
                    const int64_t left = csr.row_ptr[i + 1] - e0;
                    const int count = left < kBlock ? int(left) : kBlock;
                    stage(a + e0 * s.radial, count, s.radial, padded, scratch.basis.data());
                    stage(dA + e0 * s.radial, count, s.radial, padded, scratch.basis_dot.data());
                    filter(scratch.basis.data(), count, s.radial, padded, weights, wide, w);
                    filter(scratch.basis_dot.data(), count, s.radial, padded, weights, wide, dw);
                    const int64_t *near = csr.sender + e0;
                    const T *ue = unit + e0 * 3;
                    by_payload(g, near, ue, w, count, F, gx);
                    for (int e = 0; e < count; ++e) {
                        const T *xj = x + near[e] * 5 * F, *we = w + e * wide + 2 * F, *de = dw + e * wide;
                        const T u0 = ue[3 * e], u1 = ue[3 * e + 1], u2 = ue[3 * e + 2];
                        V length = {}, s0 = {}, s1 = {}, s2 = {};
                        for (int64_t f = 0; f < F; f += L) {
                            const V g0 = load(gi + F + f), g1 = load(gi + 2 * F + f), g2 = load(gi + 3 * F + f);
                            const V pb = load(xj + F + f), pushed = load(we + f) * pb;
                            s0 += pushed * g0;  // eq. 8 (message.cpp) by u_e
                            s1 += pushed * g1;
                            s2 += pushed * g2;
                            length += load(de + f) * (load(gi + f) * load(xj + f));  // eq. 7 by the distance
                            length += load(de + F + f) *  // eq. 8, first sum, by the distance
                                      (g0 * load(xj + 2 * F + f) + g1 * load(xj + 3 * F + f) + g2 * load(xj + 4 * F + f));
                            length += load(de + 2 * F + f) * ((g0 * u0 + g1 * u1 + g2 * u2) * pb);  // eq. 8, second sum, by the distance
                        }
                        gd[m * s.edges + e0 + e] = sum<T>(length);
                        T *o = gu + (m * s.edges + e0 + e) * 3;
                        o[0] = sum<T>(s0);
                        o[1] = sum<T>(s1);
                        o[2] = sum<T>(s2);
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
        pull<T>({K, N, E, F, R}, {row_ptr, sender}, X, A, as, u, us, W, D, G, gX, gd, gu);                            \
    }
EXPORT(f32, float)
EXPORT(f64, double)
