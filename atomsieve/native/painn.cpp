// The steps of a PaiNN layer at single atoms, between its matrix products and its message, forward and backward.
//
// A row is one atom of one member; F channels. Vectors stand as [3,F], `lr` [3,2F] holds left and right of each component,
// `joined` [2F] the scalars after the message and the norms of right, `a` [3F] the gates a_ss, a_sv, a_vv. A null pointer
// for vectors or their gradients means zero. The channels are whole vectors of a register. "eq." numbers: Schuett,
// Unke and Gastegger, ICML 2021, as written in atomsieve/models/painn/encoder.py.
#include "painn_nodes.h"

namespace {

// h = y sigmoid(y), y <- dh/dy
template <class T> void silu(int64_t count, T *y, T *h) {
    using V = typename Lanes<T>::V;
    each<T>(count / Lanes<T>::n, Lanes<T>::n, [=](int64_t i, int64_t) {
        const int64_t at = i * Lanes<T>::n;
        const V a = load(y + at), gate = T(1) / (T(1) + exponential(-a));
        store(h + at, a * gate);
        store(y + at, gate * (T(1) + a * (T(1) - gate)));
    });
}

template <class T> void scale(int64_t count, const T *by, T *g) {
    each<T>(count / Lanes<T>::n, Lanes<T>::n, [=](int64_t i, int64_t) {
        const int64_t at = i * Lanes<T>::n;
        store(g + at, load(g + at) * load(by + at));
    });
}

// x [5F] = p_s, p_b, and p_a times the vectors: what eqs. 7 and 8 send
template <class T> void payload(int64_t rows, int64_t F, const T *p, const T *v, T *x) {
    using V = typename Lanes<T>::V;
    each<T>(rows, F, [=](int64_t i, int64_t f) {
        const T *from = p + i * 3 * F + f;
        T *to = x + i * 5 * F + f;
        store(to, load(from));
        store(to + F, load(from + F));
        const V carried = load(from + 2 * F);
        for (int k = 0; k < 3; ++k) store(to + (2 + k) * F, v ? carried * load(v + (3 * i + k) * F + f) : V{});
    });
}

// `payload` transposed: gradient by p, and that by the vectors added to gv where there are any.
template <class T> void payload_back(int64_t rows, int64_t F, const T *gx, const T *p, const T *v, T *gp, T *gv) {
    using V = typename Lanes<T>::V;
    each<T>(rows, F, [=](int64_t i, int64_t f) {
        const T *from = gx + i * 5 * F + f;
        T *to = gp + i * 3 * F + f;
        store(to, load(from));
        store(to + F, load(from + F));
        V by_carried = {};
        if (v) {
            const V carried = load(p + (3 * i + 2) * F + f);
            for (int k = 0; k < 3; ++k) {
                const int64_t at = (3 * i + k) * F + f;
                const V g = load(from + (2 + k) * F);
                by_carried += g * load(v + at);
                store(gv + at, load(gv + at) + carried * g);
            }
        }
        store(to + 2 * F, by_carried);
    });
}

// Scalars (first half of joined) and vectors v1 after the message: s + eq. 7, v + eq. 8.
template <class T> void receive(int64_t rows, int64_t F, const T *received, const T *s, const T *v, T *joined, T *v1) {
    each<T>(rows, F, [=](int64_t i, int64_t f) {
        const T *from = received + i * 4 * F + f;
        store(joined + 2 * i * F + f, load(s + i * F + f) + load(from));
        for (int k = 0; k < 3; ++k) {
            const int64_t at = (3 * i + k) * F + f;
            store(v1 + at, v ? load(v + at) + load(from + (1 + k) * F) : load(from + (1 + k) * F));
        }
    });
}

// received [4F] <- gs and gv + gm: gradients by what the message gave. gm: gradient by what was mixed.
template <class T> void receive_back(int64_t rows, int64_t F, const T *gs, const T *gv, const T *gm, T *received) {
    each<T>(rows, F, [=](int64_t i, int64_t f) {
        T *to = received + i * 4 * F + f;
        store(to, load(gs + i * F + f));
        for (int k = 0; k < 3; ++k) {
            const int64_t at = (3 * i + k) * F + f;
            store(to + (1 + k) * F, gv ? load(gv + at) + load(gm + at) : load(gm + at));
        }
    });
}

template <class T> void norm(int64_t rows, int64_t F, const T *lr, T *joined) {
    each<T>(rows, F, [=](int64_t i, int64_t f) { store(joined + (2 * i + 1) * F + f, Pair<T>(lr + 6 * i * F, F, f).norm()); });
}

// s2 = s1 + a_ss + a_sv l.r (eq. 9),  v2 = v1 + a_vv l (eq. 10)
template <class T>
void update(int64_t rows, int64_t F, const T *a, const T *lr, const T *joined, const T *v1, T *s2, T *v2) {
    each<T>(rows, F, [=](int64_t i, int64_t f) {
        const Pair<T> p(lr + 6 * i * F, F, f);
        const T *gates = a + 3 * i * F + f;
        store(s2 + i * F + f, load(joined + 2 * i * F + f) + load(gates) + load(gates + F) * p.dot());
        for (int k = 0; k < 3; ++k) {
            const int64_t at = (3 * i + k) * F + f;
            store(v2 + at, load(v1 + at) + load(gates + 2 * F) * p.l[k]);
        }
    });
}

// Eqs. 9, 10 transposed: gradients by the gates and by left and right (the part that does not go through the norm).
template <class T>
void update_back(int64_t rows, int64_t F, const T *gs, const T *gv, const T *a, const T *lr, T *ga, T *glr) {
    using V = typename Lanes<T>::V;
    each<T>(rows, F, [=](int64_t i, int64_t f) {
        const Pair<T> p(lr + 6 * i * F, F, f);
        const T *gates = a + 3 * i * F + f;
        const V g = load(gs + i * F + f), by_dot = g * load(gates + F), a_vv = load(gates + 2 * F);
        V by_a_vv = {};
        for (int k = 0; k < 3; ++k) {
            const V gk = gv ? load(gv + (3 * i + k) * F + f) : V{};
            by_a_vv += gk * p.l[k];
            store(glr + (6 * i + 2 * k) * F + f, by_dot * p.r[k] + gk * a_vv);
            store(glr + (6 * i + 2 * k + 1) * F + f, by_dot * p.l[k]);
        }
        T *to = ga + 3 * i * F + f;
        store(to, g);
        store(to + F, g * p.dot());
        store(to + 2 * F, by_a_vv);
    });
}

// gs1 = gs + gradient by the scalars of joined; glr gets what comes through the norm.
template <class T>
void norm_back(int64_t rows, int64_t F, const T *gjoined, const T *joined, const T *lr, const T *gs, T *glr, T *gs1) {
    using V = typename Lanes<T>::V;
    each<T>(rows, F, [=](int64_t i, int64_t f) {
        const V by_norm = load(gjoined + (2 * i + 1) * F + f) / load(joined + (2 * i + 1) * F + f);
        for (int k = 0; k < 3; ++k) {
            const int64_t at = (6 * i + 2 * k + 1) * F + f;
            store(glr + at, load(glr + at) + by_norm * load(lr + at));
        }
        store(gs1 + i * F + f, load(gs + i * F + f) + load(gjoined + 2 * i * F + f));
    });
}

}  // namespace

#define EXPORT(NAME, T)                                                                                                  \
    extern "C" void painn_silu_##NAME(int64_t count, T *y, T *h) { silu(count, y, h); }                                  \
    extern "C" void painn_scale_##NAME(int64_t count, const T *by, T *g) { scale(count, by, g); }                        \
    extern "C" void painn_payload_##NAME(int64_t rows, int64_t width, const T *p, const T *v, T *x) {                    \
        payload(rows, width, p, v, x);                                                                                   \
    }                                                                                                                    \
    extern "C" void painn_payload_back_##NAME(int64_t rows, int64_t width, const T *gx, const T *p, const T *v, T *gp,   \
                                              T *gv) {                                                                   \
        payload_back(rows, width, gx, p, v, gp, gv);                                                                     \
    }                                                                                                                    \
    extern "C" void painn_receive_##NAME(int64_t rows, int64_t width, const T *received, const T *s, const T *v,         \
                                         T *joined, T *v1) {                                                             \
        receive(rows, width, received, s, v, joined, v1);                                                                \
    }                                                                                                                    \
    extern "C" void painn_receive_back_##NAME(int64_t rows, int64_t width, const T *gs, const T *gv, const T *gm,        \
                                              T *received) {                                                             \
        receive_back(rows, width, gs, gv, gm, received);                                                                 \
    }                                                                                                                    \
    extern "C" void painn_norm_##NAME(int64_t rows, int64_t width, const T *lr, T *joined) {                             \
        norm(rows, width, lr, joined);                                                                                   \
    }                                                                                                                    \
    extern "C" void painn_update_##NAME(int64_t rows, int64_t width, const T *a, const T *lr, const T *joined,           \
                                        const T *v1, T *s2, T *v2) {                                                     \
        update(rows, width, a, lr, joined, v1, s2, v2);                                                                  \
    }                                                                                                                    \
    extern "C" void painn_update_back_##NAME(int64_t rows, int64_t width, const T *gs, const T *gv, const T *a,          \
                                             const T *lr, T *ga, T *glr) {                                               \
        update_back(rows, width, gs, gv, a, lr, ga, glr);                                                                \
    }                                                                                                                    \
    extern "C" void painn_norm_back_##NAME(int64_t rows, int64_t width, const T *gjoined, const T *joined, const T *lr,  \
                                           const T *gs, T *glr, T *gs1) {                                                \
        norm_back(rows, width, gjoined, joined, lr, gs, glr, gs1);                                                       \
    }
EXPORT(f32, float)
EXPORT(f64, double)
