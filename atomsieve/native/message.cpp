// The PaiNN message of a stack of members, and its first and second derivatives, without edge-wide temporaries.
//
// For an edge e from sender j to receiver i, with basis A_e [R], unit vector u_e [3] and filter weights Wf [R,3F]:
//     (w_s, w_a, w_b) = A_e Wf,   ds_i = sum_e w_s * p_s[j],   dv_i = sum_e w_a * q[j] + w_b * p_b[j] (x) u_e
// Node payload X = [p_s, p_b, q_x, q_y, q_z] (5F), result Y = [ds, dv_x, dv_y, dv_z] (4F).
// Edges are sorted by receiver and come in both directions, so the sum over edges that leave an atom is a sum over the
// edges that it receives, with u reversed: no scatter anywhere. Arrays are C-contiguous; members lead.
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif

template <class T> struct Lanes {
    typedef T V __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
    static constexpr int n = kBytes / sizeof(T);
};

constexpr int kBlock = 32;  // edges handled together; a multiple of the edge tiles below

struct Shape {
    int64_t members, atoms, edges, width, radial;
    int64_t padded() const { return (radial + 15) / 16 * 16; }
};

struct Csr {
    const int64_t *row_ptr, *sender;
};

template <class T> inline typename Lanes<T>::V load(const T *p) { return *reinterpret_cast<const typename Lanes<T>::V *>(p); }
template <class T> inline void store(T *p, typename Lanes<T>::V v) { *reinterpret_cast<typename Lanes<T>::V *>(p) = v; }
template <class T> inline T sum(typename Lanes<T>::V v) {
    T total = 0;
    for (int k = 0; k < Lanes<T>::n; ++k) total += v[k];
    return total;
}

// Copy `count` rows of `radial` values into rows of `padded` values, zero beyond, for whole tiles of edges.
template <class T>
inline void stage(const T *rows, int count, int64_t radial, int64_t padded, T *out) {
    std::memset(out, 0, sizeof(T) * kBlock * padded);
    for (int e = 0; e < count; ++e) std::memcpy(out + e * padded, rows + e * radial, sizeof(T) * radial);
}

// out[e,:] = basis[e,:] . weights  for e < count (rounded up to a tile of 4).
template <class T>
inline void filter(const T *basis, int count, int64_t radial, int64_t padded, const T *weights, int64_t wide, T *out) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    for (int64_t f = 0; f < wide; f += L) {
        for (int e = 0; e < count; e += 4) {
            const T *a = basis + e * padded;
            V w0 = {}, w1 = {}, w2 = {}, w3 = {};
            for (int64_t r = 0; r < radial; ++r) {
                const V w = load(weights + r * wide + f);
                w0 += w * a[r];
                w1 += w * a[padded + r];
                w2 += w * a[2 * padded + r];
                w3 += w * a[3 * padded + r];
            }
            T *o = out + e * wide + f;
            store(o, w0);
            store(o + wide, w1);
            store(o + 2 * wide, w2);
            store(o + 3 * wide, w3);
        }
    }
}

// out[e,r] = sum_f grads[e,f] weights_t[f,r]: gradient of the basis, a tile of 4 edges and two vectors of r at a time.
template <class T>
inline void filter_grad_basis(const T *grads, int count, int64_t padded, const T *weights_t, int64_t wide, T *out) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    for (int64_t r = 0; r < padded; r += L) {
        for (int e = 0; e < count; e += 8) {
            V g[8] = {};
            for (int64_t f = 0; f < wide; ++f) {
                const V w = load(weights_t + f * padded + r);
                for (int k = 0; k < 8; ++k) g[k] += w * grads[(e + k) * wide + f];
            }
            for (int k = 0; k < 8; ++k) store(out + (e + k) * padded + r, g[k]);
        }
    }
}

// into[r,f] += sum_e basis[e,r] grads[e,f]: gradient of the filter weights.
template <class T>
inline void filter_grad_weights(const T *basis, const T *grads, int count, int64_t radial, int64_t padded, int64_t wide,
                                T *into) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    for (int64_t f = 0; f < wide; f += L) {
        int64_t r = 0;
        for (; r + 4 <= radial; r += 4) {
            T *o = into + r * wide + f;
            V g0 = load(o), g1 = load(o + wide), g2 = load(o + 2 * wide), g3 = load(o + 3 * wide);
            for (int e = 0; e < count; ++e) {
                const V c = load(grads + e * wide + f);
                const T *a = basis + e * padded + r;
                g0 += c * a[0];
                g1 += c * a[1];
                g2 += c * a[2];
                g3 += c * a[3];
            }
            store(o, g0);
            store(o + wide, g1);
            store(o + 2 * wide, g2);
            store(o + 3 * wide, g3);
        }
        for (; r < radial; ++r) {
            V g = load(into + r * wide + f);
            for (int e = 0; e < count; ++e) g += load(grads + e * wide + f) * basis[e * padded + r];
            store(into + r * wide + f, g);
        }
    }
}

// Working memory of one thread.
template <class T> struct Scratch {
    std::vector<T> basis, basis_dot, w, w_dot, c, c_dot, grad_basis, weights_t, row;
    explicit Scratch(const Shape &s)
        : basis(kBlock * s.padded()), basis_dot(kBlock * s.padded()), w(kBlock * 3 * s.width), w_dot(kBlock * 3 * s.width),
          c(kBlock * 3 * s.width), c_dot(kBlock * 3 * s.width), grad_basis(kBlock * s.padded()),
          weights_t(3 * s.width * s.padded()), row(9 * s.width) {}

    void transpose(const T *weights, const Shape &s) {
        const int64_t wide = 3 * s.width, padded = s.padded();
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

template <class T>
void forward(const Shape s, const Csr csr, const T *X, const T *A, int64_t a_stride, const T *u, int64_t u_stride,
             const T *Wf, T *Y) {
    using V = typename Lanes<T>::V;
    constexpr int L = Lanes<T>::n;
    const int64_t F = s.width, wide = 3 * F, padded = s.padded();
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
                    for (int e = 0; e < count; ++e) {
                        const T *xj = x + csr.sender[e0 + e] * 5 * F, *we = w + e * wide, *ue = unit + (e0 + e) * 3;
                        for (int64_t f = 0; f < F; f += L) {
                            const V wa = load(we + F + f), wb = load(we + 2 * F + f) * load(xj + F + f);
                            store(y + f, load(y + f) + load(we + f) * load(xj + f));
                            for (int k = 0; k < 3; ++k) {
                                T *o = y + (1 + k) * F + f;
                                store(o, load(o) + wa * load(xj + (2 + k) * F + f) + wb * ue[k]);
                            }
                        }
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
    const int64_t F = s.width, wide = 3 * F, padded = s.padded();
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
                    for (int e = 0; e < count; ++e) {
                        const int64_t j = csr.sender[e0 + e];
                        const T *xj = x + j * 5 * F, *gj = g + j * 4 * F, *we = w + e * wide, *ue = unit + (e0 + e) * 3;
                        const T u0 = ue[0], u1 = ue[1], u2 = ue[2];
                        if (gX) {
                            for (int64_t f = 0; f < F; f += L) {
                                const V ga = load(gj + F + f), gb = load(gj + 2 * F + f), gc = load(gj + 3 * F + f);
                                const V wa = load(we + F + f);
                                store(gx + f, load(gx + f) + load(we + f) * load(gj + f));
                                store(gx + F + f, load(gx + F + f) - load(we + 2 * F + f) * (ga * u0 + gb * u1 + gc * u2));
                                store(gx + 2 * F + f, load(gx + 2 * F + f) + wa * ga);
                                store(gx + 3 * F + f, load(gx + 3 * F + f) + wa * gb);
                                store(gx + 4 * F + f, load(gx + 4 * F + f) + wa * gc);
                            }
                        }
                        if (!edge_grads) continue;
                        T *ce = c + e * wide;
                        V s0 = {}, s1 = {}, s2 = {};
                        for (int64_t f = 0; f < F; f += L) {
                            const V ga = load(gi + F + f), gb = load(gi + 2 * F + f), gc = load(gi + 3 * F + f);
                            const V pb = load(xj + F + f), wp = load(we + 2 * F + f) * pb;
                            store(ce + f, load(gi + f) * load(xj + f));
                            store(ce + F + f, ga * load(xj + 2 * F + f) + gb * load(xj + 3 * F + f) + gc * load(xj + 4 * F + f));
                            store(ce + 2 * F + f, (ga * u0 + gb * u1 + gc * u2) * pb);
                            s0 += wp * ga;
                            s1 += wp * gb;
                            s2 += wp * gc;
                        }
                        if (gu) {
                            T *o = gu + (m * s.edges + e0 + e) * 3;
                            o[0] = sum<T>(s0);
                            o[1] = sum<T>(s1);
                            o[2] = sum<T>(s2);
                        }
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
    const int64_t F = s.width, wide = 3 * F, padded = s.padded();
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
                    for (int e = 0; e < count; ++e) {
                        const int64_t j = csr.sender[e0 + e];
                        const T *xj = x + j * 5 * F, *hj = hx + j * 5 * F, *gj = g + j * 4 * F;
                        const T *we = w + e * wide, *de = wd + e * wide;
                        const T *ue = unit + (e0 + e) * 3, *ve = udot + (e0 + e) * 3;
                        T *ce = c + e * wide, *ced = cd + e * wide;
                        for (int64_t f = 0; f < F; f += L) {
                            const V ws = load(we + f), wa = load(we + F + f), wb = load(we + 2 * F + f);
                            const V ds = load(de + f), da = load(de + F + f), db = load(de + 2 * F + f);
                            const V ps = load(xj + f), pb = load(xj + F + f), hs = load(hj + f), hb = load(hj + F + f);
                            store(gg + f, load(gg + f) + ds * ps + ws * hs);
                            store(gx + f, load(gx + f) + ds * load(gj + f));
                            store(ce + f, load(gi + f) * ps);
                            store(ced + f, load(gi + f) * hs);
                            const V along = db * pb + wb * hb, turned = wb * pb;
                            V ju = {}, jv = {}, iu = {}, iv = {}, iq = {}, ih = {};
                            for (int k = 0; k < 3; ++k) {
                                const V q = load(xj + (2 + k) * F + f), h = load(hj + (2 + k) * F + f);
                                const V gik = load(gi + (1 + k) * F + f), gjk = load(gj + (1 + k) * F + f);
                                T *o = gg + (1 + k) * F + f, *p = gx + (2 + k) * F + f;
                                store(o, load(o) + da * q + wa * h + along * ue[k] + turned * ve[k]);
                                store(p, load(p) + da * gjk);
                                ju += gjk * ue[k];
                                jv += gjk * ve[k];
                                iu += gik * ue[k];
                                iv += gik * ve[k];
                                iq += gik * q;
                                ih += gik * h;
                            }
                            store(gx + F + f, load(gx + F + f) - db * ju - wb * jv);
                            store(ce + F + f, iq);
                            store(ced + F + f, ih);
                            store(ce + 2 * F + f, iu * pb);
                            store(ced + 2 * F + f, iv * pb + iu * hb);
                        }
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
