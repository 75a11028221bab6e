// The steps of a PaiNN layer at single atoms in training, between its matrix products.
//
// Rows and arrays as in painn.cpp. G is the width of a row of gates: 3F, or 2F (a_ss, a_sv) in a layer whose vectors nobody
// reads. Prefixes: e, gradient of the energy ("adjoint", from the first backward pass); h, tangent; b, gradient of the loss.
// A loss on forces is differentiated as a loss on the energy's derivative along a tangent: for z = f(q), whose tangent is
// hz = f'(q) hq, the reverse pass has bq = f'(q)^T bz + d/dq (ez . f'(q) hq). Null pointers of e and h: no loss on forces.
#pragma once
#include "painn_nodes.h"

namespace {

template <class T> using Vec = typename Lanes<T>::V;

// Call body(row, offset of a register) over rows, one after the other.
template <class T, class Body> inline void along(int64_t rows, int64_t width, Body body) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t f = 0; f < width; f += Lanes<T>::n) body(i, f);
}

// h = y sigmoid(y); y <- dh/dy; curve (may be null) <- d2h/dy2
template <class T> void activate(int64_t count, T *y, T *h, T *curve) {
    using V = Vec<T>;
    along<T>(count / Lanes<T>::n, Lanes<T>::n, [=](int64_t i, int64_t) {
        const int64_t at = i * Lanes<T>::n;
        const V a = load(y + at), gate = T(1) / (T(1) + exponential(-a)), rest = T(1) - gate;
        store(h + at, a * gate);
        store(y + at, gate * (T(1) + a * rest));
        if (curve) store(curve + at, gate * rest * (T(2) + a * (rest - gate)));
    });
}

// out = g * slope
template <class T> void scaled(int64_t count, const T *slope, const T *g, T *out) {
    along<T>(count / Lanes<T>::n, Lanes<T>::n, [=](int64_t i, int64_t) {
        const int64_t at = i * Lanes<T>::n;
        store(out + at, load(g + at) * load(slope + at));
    });
}

// out = b * slope + e * curve * h
template <class T>
void bend(int64_t count, const T *slope, const T *curve, const T *e, const T *h, const T *b, T *out) {
    along<T>(count / Lanes<T>::n, Lanes<T>::n, [=](int64_t i, int64_t) {
        const int64_t at = i * Lanes<T>::n;
        Vec<T> found = load(b + at) * load(slope + at);
        if (e) found += load(e + at) * load(curve + at) * load(h + at);
        store(out + at, found);
    });
}

// joined [2F]: scalars s (null: zero) in its first half; v1 = v (null: zero): what messages are added to.
template <class T> inline void begin(int64_t i, int64_t f, int64_t F, const T *s, const T *v, T *joined, T *v1) {
    store(joined + 2 * i * F + f, s ? load(s + i * F + f) : Vec<T>{});
    for (int k = 0; k < 3; ++k) store(v1 + (3 * i + k) * F + f, v ? load(v + (3 * i + k) * F + f) : Vec<T>{});
}

template <class T> void start(int64_t rows, int64_t F, const T *s, T *joined, T *v1) {
    along<T>(rows, F, [=](int64_t i, int64_t f) { begin<T>(i, f, F, s, nullptr, joined, v1); });
}

// x [5F] = p_s, p_b, p_a v: what eqs. 7 and 8 send.
template <class T> void send(int64_t rows, int64_t F, const T *p, const T *s, const T *v, T *x, T *joined, T *v1) {
    along<T>(rows, F, [=](int64_t i, int64_t f) {
        const T *from = p + i * 3 * F + f;
        T *to = x + i * 5 * F + f;
        store(to, load(from));
        store(to + F, load(from + F));
        const Vec<T> carried = load(from + 2 * F);
        for (int k = 0; k < 3; ++k) store(to + (2 + k) * F, carried * load(v + (3 * i + k) * F + f));
        begin(i, f, F, s, v, joined, v1);
    });
}

template <class T>
void send_tangent(int64_t rows, int64_t F, const T *p, const T *v, const T *hp, const T *hs, const T *hv, T *hx, T *hjoined,
                  T *hv1) {
    along<T>(rows, F, [=](int64_t i, int64_t f) {
        const T *from = hp + i * 3 * F + f;
        T *to = hx + i * 5 * F + f;
        store(to, load(from));
        store(to + F, load(from + F));
        const Vec<T> carried = load(p + (3 * i + 2) * F + f), lent = load(from + 2 * F);
        for (int k = 0; k < 3; ++k) {
            const int64_t at = (3 * i + k) * F + f;
            store(to + (2 + k) * F, lent * load(v + at) + carried * load(hv + at));
        }
        begin(i, f, F, hs, hv, hjoined, hv1);
    });
}

// Gradients bp and bv from that by x and that (bv1) by the vectors that messages were added to.
template <class T>
void send_reverse(int64_t rows, int64_t F, const T *p, const T *v, const T *bx, const T *bv1, const T *ex, const T *hp,
                  const T *hv, T *bp, T *bv) {
    along<T>(rows, F, [=](int64_t i, int64_t f) {
        const T *from = bx + i * 5 * F + f;
        T *to = bp + i * 3 * F + f;
        store(to, load(from));
        store(to + F, load(from + F));
        Vec<T> by_carried = {};
        const Vec<T> carried = load(p + (3 * i + 2) * F + f), lent = ex ? load(hp + (3 * i + 2) * F + f) : Vec<T>{};
        for (int k = 0; k < 3; ++k) {
            const int64_t at = (3 * i + k) * F + f;
            const Vec<T> g = load(from + (2 + k) * F);
            Vec<T> by_v = load(bv1 + at) + carried * g;
            by_carried += g * load(v + at);
            if (ex) {
                const Vec<T> e = load(ex + (5 * i + 2 + k) * F + f);
                by_carried += e * load(hv + at);
                by_v += e * lent;
            }
            store(bv + at, by_v);
        }
        store(to + 2 * F, by_carried);
    });
}

// Second half of joined: |V v|.
template <class T> void norm(int64_t rows, int64_t F, const T *lr, T *joined) {
    along<T>(rows, F, [=](int64_t i, int64_t f) { store(joined + (2 * i + 1) * F + f, Pair<T>(lr + 6 * i * F, F, f).norm()); });
}

// Second half of hjoined: tangent of |V v|.
template <class T> void norm_tangent(int64_t rows, int64_t F, const T *lr, const T *joined, const T *hlr, T *hjoined) {
    along<T>(rows, F, [=](int64_t i, int64_t f) {
        const int64_t at = (2 * i + 1) * F + f;
        const Pair<T> p(lr + 6 * i * F, F, f), h(hlr + 6 * i * F, F, f);
        store(hjoined + at, (p.r[0] * h.r[0] + p.r[1] * h.r[1] + p.r[2] * h.r[2]) / load(joined + at));
    });
}

// bs1 = bs + gradient by the scalars of joined; blr gets what comes through the norm n = |r|: bn r / n, and from its
// tangent r.hr / n, en (hr - r hn / n) / n.
template <class T>
void norm_reverse(int64_t rows, int64_t F, const T *joined, const T *lr, const T *bs, const T *bjoined, const T *ejoined,
                  const T *hjoined, const T *hlr, T *blr, T *bs1) {
    along<T>(rows, F, [=](int64_t i, int64_t f) {
        const int64_t at = (2 * i + 1) * F + f;
        const Vec<T> inverse = T(1) / load(joined + at);
        Vec<T> by_r = load(bjoined + at) * inverse, by_hr = {};
        if (ejoined) {
            by_hr = load(ejoined + at) * inverse;
            by_r -= by_hr * load(hjoined + at) * inverse;
        }
        for (int k = 0; k < 3; ++k) {
            const int64_t right = (6 * i + 2 * k + 1) * F + f;
            Vec<T> found = load(blr + right) + by_r * load(lr + right);
            if (ejoined) found += by_hr * load(hlr + right);
            store(blr + right, found);
        }
        store(bs1 + i * F + f, load(bs + i * F + f) + load(bjoined + 2 * i * F + f));
    });
}

// s2 = s1 + a_ss + a_sv l.r (eq. 9),  v2 = v1 + a_vv l (eq. 10; none if v2 is null)
template <class T>
void gate(int64_t rows, int64_t F, int64_t G, const T *a, const T *lr, const T *joined, const T *v1, T *s2, T *v2) {
    along<T>(rows, F, [=](int64_t i, int64_t f) {
        const Pair<T> p(lr + 6 * i * F, F, f);
        const T *gates = a + i * G + f;
        store(s2 + i * F + f, load(joined + 2 * i * F + f) + load(gates) + load(gates + F) * p.dot());
        for (int k = 0; v2 && k < 3; ++k) {
            const int64_t at = (3 * i + k) * F + f;
            store(v2 + at, load(v1 + at) + load(gates + 2 * F) * p.l[k]);
        }
    });
}

template <class T>
void gate_tangent(int64_t rows, int64_t F, int64_t G, const T *a, const T *lr, const T *ha, const T *hlr, const T *hjoined,
                  const T *hv1, T *hs2, T *hv2) {
    along<T>(rows, F, [=](int64_t i, int64_t f) {
        const Pair<T> p(lr + 6 * i * F, F, f), h(hlr + 6 * i * F, F, f);
        const T *gates = a + i * G + f, *lent = ha + i * G + f;
        const Vec<T> turn = h.l[0] * p.r[0] + h.l[1] * p.r[1] + h.l[2] * p.r[2] +  //
                            p.l[0] * h.r[0] + p.l[1] * h.r[1] + p.l[2] * h.r[2];
        store(hs2 + i * F + f,
              load(hjoined + 2 * i * F + f) + load(lent) + load(lent + F) * p.dot() + load(gates + F) * turn);
        for (int k = 0; hv2 && k < 3; ++k) {
            const int64_t at = (3 * i + k) * F + f;
            store(hv2 + at, load(hv1 + at) + load(lent + 2 * F) * p.l[k] + load(gates + 2 * F) * h.l[k]);
        }
    });
}

// Eqs. 9, 10 transposed: gradients by the gates and by left and right (the part that does not go through the norm). With
// es [F] and ev [3F] given, those of the tangents too.
template <class T>
void gate_reverse(int64_t rows, int64_t F, int64_t G, const T *a, const T *lr, const T *bs, const T *bv, const T *es,
                  const T *ev, const T *ha, const T *hlr, T *ba, T *blr) {
    along<T>(rows, F, [=](int64_t i, int64_t f) {
        const Pair<T> p(lr + 6 * i * F, F, f);
        const T *gates = a + i * G + f;
        T *to = ba + i * G + f, *by = blr + 6 * i * F + f;
        const bool vectors = G > 2 * F;
        const Vec<T> g = load(bs + i * F + f), a_sv = load(gates + F), a_vv = vectors ? load(gates + 2 * F) : Vec<T>{};
        Vec<T> by_dot = g * a_sv, by_a_sv = g * p.dot(), by_a_vv = {};
        if (!es) {
            for (int k = 0; k < 3; ++k) {
                const Vec<T> gk = bv ? load(bv + (3 * i + k) * F + f) : Vec<T>{};
                by_a_vv += gk * p.l[k];
                store(by + 2 * k * F, by_dot * p.r[k] + gk * a_vv);
                store(by + (2 * k + 1) * F, by_dot * p.l[k]);
            }
        } else {
            const Pair<T> h(hlr + 6 * i * F, F, f);
            const T *lent = ha + i * G + f;
            const Vec<T> e = load(es + i * F + f), e_dot = e * a_sv, h_vv = vectors ? load(lent + 2 * F) : Vec<T>{};
            by_dot += e * load(lent + F);
            by_a_sv += e * (h.l[0] * p.r[0] + h.l[1] * p.r[1] + h.l[2] * p.r[2] +  //
                            p.l[0] * h.r[0] + p.l[1] * h.r[1] + p.l[2] * h.r[2]);
            for (int k = 0; k < 3; ++k) {
                const int64_t at = (3 * i + k) * F + f;
                const Vec<T> gk = bv ? load(bv + at) : Vec<T>{}, ek = ev ? load(ev + at) : Vec<T>{};
                by_a_vv += gk * p.l[k] + ek * h.l[k];
                store(by + 2 * k * F, by_dot * p.r[k] + e_dot * h.r[k] + gk * a_vv + ek * h_vv);
                store(by + (2 * k + 1) * F, by_dot * p.l[k] + e_dot * h.l[k]);
            }
        }
        store(to, g);
        store(to + F, by_a_sv);
        if (vectors) store(to + 2 * F, by_a_vv);
    });
}

}  // namespace
