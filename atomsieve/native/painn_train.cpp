// The parts of a PaiNN layer at single atoms in training: before the message (in) and after it (out), for all passes.
//
// A part goes over blocks of atoms of one member, so that what stands between its products stays in cache. Names and
// prefixes as in painn_rows.h; weights w1 .. w4 and mix as [inputs,outputs] of each member, with t: transposed. A part's
// arrays are given as a list of pointers, in the order of its struct.
#include <vector>

#include "painn_product.h"
#include "painn_rows.h"

namespace {

using product::multiply;

constexpr int64_t kRows = 24;  // atoms of a block: whole tiles of the product

struct Size {
    int64_t members, atoms, F, G;  // G: width of the gates, see painn_rows.h
};

// Call body(member, first row of all, rows) for blocks of atoms.
template <class Body> inline void for_blocks(const Size &n, Body body) {
    const int64_t blocks = (n.atoms + kRows - 1) / kRows, tasks = blocks * n.members;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < tasks; ++k) {
        const int64_t first = (k % blocks) * kRows;
        body(k / blocks, k / blocks * n.atoms + first, std::min(kRows, n.atoms - first));
    }
}

template <class T> inline T *at(T *p, int64_t offset) { return p ? p + offset : p; }

// Payload of s, and what is sent; layers without vectors (v null) send the payload itself.
template <class T> struct ForwardIn {
    const T *w1, *b1, *w2, *b2, *s, *v;
    T *slope1, *hidden1, *curve1, *p, *x, *joined, *v1;
    void run(const Size &n) const {
        const int64_t F = n.F, P = v ? 3 * F : 2 * F;
        for_blocks(n, [&](int64_t m, int64_t r, int64_t rows) {
            T *slope = slope1 + r * F, *hidden = hidden1 + r * F, *to = p + r * P;
            multiply<T>(rows, F, F, s + r * F, F, w1 + m * F * F, F, b1 + m * F, 0, slope, F);
            activate<T>(rows * F, slope, hidden, curve1 + r * F);
            multiply<T>(rows, F, P, hidden, F, w2 + m * 3 * F * F, 3 * F, b2 + m * 3 * F, 0, to, P);
            if (v) send<T>(rows, F, to, s + r * F, v + r * 3 * F, x + r * 5 * F, joined + r * 2 * F, v1 + r * 3 * F);
            else start<T>(rows, F, s + r * F, joined + r * 2 * F, v1 + r * 3 * F);
        });
    }
};

template <class T> struct ForwardOut {
    const T *mix, *w3, *b3, *w4, *b4, *v1;
    T *joined, *lr, *slope2, *hidden2, *curve2, *gates, *s2, *v2;
    void run(const Size &n) const {
        const int64_t F = n.F, G = n.G;
        for_blocks(n, [&](int64_t m, int64_t r, int64_t rows) {
            T *both = lr + r * 6 * F, *j = joined + r * 2 * F, *slope = slope2 + r * F, *hidden = hidden2 + r * F;
            const T *v = v1 + r * 3 * F;
            multiply<T>(3 * rows, F, 2 * F, v, F, mix + m * 2 * F * F, 2 * F, nullptr, 0, both, 2 * F);  // U v, V v
            norm<T>(rows, F, both, j);
            multiply<T>(rows, 2 * F, F, j, 2 * F, w3 + m * 2 * F * F, F, b3 + m * F, 0, slope, F);
            activate<T>(rows * F, slope, hidden, curve2 + r * F);
            multiply<T>(rows, F, G, hidden, F, w4 + m * 3 * F * F, 3 * F, b4 + m * 3 * F, 0, gates + r * G, G);
            gate<T>(rows, F, G, gates + r * G, both, j, v, s2 + r * F, at(v2, r * 3 * F));  // eqs. 9, 10
        });
    }
};

template <class T> struct TangentIn {
    const T *w1, *w2, *v, *slope1, *p, *hs, *hv;
    T *before1, *hidden1, *hp, *hx, *hjoined, *hv1;
    void run(const Size &n) const {
        const int64_t F = n.F;
        for_blocks(n, [&](int64_t m, int64_t r, int64_t rows) {
            T *before = before1 + r * F, *hidden = hidden1 + r * F, *to = hp + r * 3 * F;
            multiply<T>(rows, F, F, hs + r * F, F, w1 + m * F * F, F, nullptr, 0, before, F);
            scaled<T>(rows * F, slope1 + r * F, before, hidden);
            multiply<T>(rows, F, 3 * F, hidden, F, w2 + m * 3 * F * F, 3 * F, nullptr, 0, to, 3 * F);
            send_tangent<T>(rows, F, p + r * 3 * F, v + r * 3 * F, to, hs + r * F, hv + r * 3 * F, hx + r * 5 * F,
                            hjoined + r * 2 * F, hv1 + r * 3 * F);
        });
    }
};

template <class T> struct TangentOut {
    const T *mix, *w3, *w4, *lr, *joined, *slope2, *gates, *hv1;
    T *hjoined, *hlr, *before2, *hidden2, *hgates, *hs2, *hv2;
    void run(const Size &n) const {
        const int64_t F = n.F, G = n.G;
        for_blocks(n, [&](int64_t m, int64_t r, int64_t rows) {
            T *both = hlr + r * 6 * F, *j = hjoined + r * 2 * F, *before = before2 + r * F, *hidden = hidden2 + r * F;
            const T *v = hv1 + r * 3 * F;
            multiply<T>(3 * rows, F, 2 * F, v, F, mix + m * 2 * F * F, 2 * F, nullptr, 0, both, 2 * F);
            norm_tangent<T>(rows, F, lr + r * 6 * F, joined + r * 2 * F, both, j);
            multiply<T>(rows, 2 * F, F, j, 2 * F, w3 + m * 2 * F * F, F, nullptr, 0, before, F);
            scaled<T>(rows * F, slope2 + r * F, before, hidden);
            multiply<T>(rows, F, G, hidden, F, w4 + m * 3 * F * F, 3 * F, nullptr, 0, hgates + r * G, G);
            gate_tangent<T>(rows, F, G, gates + r * G, lr + r * 6 * F, hgates + r * G, both, j, v, hs2 + r * F,
                            at(hv2, r * 3 * F));
        });
    }
};

// From gradients b by what leaves to those by what the message gave. Without e and h this is also the backward pass to the
// geometry, whose b are the adjoints e of the others.
template <class T> struct ReverseOut {
    const T *mix_t, *w3_t, *w4_t, *lr, *joined, *slope2, *curve2, *gates;  // activations
    const T *es2, *ev2, *ehidden2, *ejoined;                               // adjoints, or null
    const T *hgates, *hlr, *hbefore2, *hjoined;                            // tangents, or null
    const T *bs2, *bv2;
    T *bgates, *blr, *bhidden2, *bslope2, *bjoined, *bs1, *bv1;
    void run(const Size &n) const {
        const int64_t F = n.F, G = n.G;
        for_blocks(n, [&](int64_t m, int64_t r, int64_t rows) {
            const T *both = lr + r * 6 * F, *bs = bs2 + r * F, *bv = at(bv2, r * 3 * F);
            T *by_both = blr + r * 6 * F, *hidden = bhidden2 + r * F, *slope = bslope2 + r * F, *j = bjoined + r * 2 * F;
            gate_reverse<T>(rows, F, G, gates + r * G, both, bs, bv, at(es2, r * F), at(ev2, r * 3 * F), at(hgates, r * G),
                            at(hlr, r * 6 * F), bgates + r * G, by_both);
            multiply<T>(rows, G, F, bgates + r * G, G, w4_t + m * 3 * F * F, F, nullptr, 0, hidden, F);
            bend<T>(rows * F, slope2 + r * F, curve2 + r * F, at(ehidden2, r * F), at(hbefore2, r * F), hidden, slope);
            multiply<T>(rows, F, 2 * F, slope, F, w3_t + m * 2 * F * F, 2 * F, nullptr, 0, j, 2 * F);
            norm_reverse<T>(rows, F, joined + r * 2 * F, both, bs, j, at(ejoined, r * 2 * F), at(hjoined, r * 2 * F),
                            at(hlr, r * 6 * F), by_both, bs1 + r * F);
            multiply<T>(3 * rows, 2 * F, F, by_both, 2 * F, mix_t + m * 2 * F * F, F, bv, F, bv1 + r * 3 * F, F);
        });
    }
};

// From gradients by what the message took (bx) and by what it was added to (bs1, bv1) to those by what enters.
template <class T> struct ReverseIn {
    const T *w1_t, *w2_t, *v, *slope1, *curve1, *p;
    const T *ex, *ehidden1;          // adjoints, or null
    const T *hv, *hp, *hbefore1;     // tangents, or null
    const T *bx, *bs1, *bv1;
    T *bp, *bv, *bhidden1, *bslope1, *bs;
    void run(const Size &n) const {
        const int64_t F = n.F, P = v ? 3 * F : 2 * F;
        for_blocks(n, [&](int64_t m, int64_t r, int64_t rows) {
            T *hidden = bhidden1 + r * F, *slope = bslope1 + r * F;
            if (v)
                send_reverse<T>(rows, F, p + r * 3 * F, v + r * 3 * F, bx + r * 5 * F, bv1 + r * 3 * F, at(ex, r * 5 * F),
                                at(hp, r * 3 * F), at(hv, r * 3 * F), bp + r * 3 * F, bv + r * 3 * F);
            const T *by_p = v ? bp + r * P : bx + r * P;
            multiply<T>(rows, P, F, by_p, P, w2_t + m * 3 * F * F, F, nullptr, 0, hidden, F);
            bend<T>(rows * F, slope1 + r * F, curve1 + r * F, at(ehidden1, r * F), at(hbefore1, r * F), hidden, slope);
            multiply<T>(rows, F, F, slope, F, w1_t + m * F * F, F, bs1 + r * F, F, bs + r * F, F);
        });
    }
};

}  // namespace

#define EXPORT_PART(NAME, PART, SUFFIX, T)                                                                               \
    extern "C" void painn_part_##NAME##_##SUFFIX(int64_t members, int64_t atoms, int64_t F, int64_t G,                    \
                                                 const PART<T> *part) {                                                  \
        part->run({members, atoms, F, G});                                                                               \
    }
#define EXPORT(SUFFIX, T)                           \
    EXPORT_PART(forward_in, ForwardIn, SUFFIX, T)   \
    EXPORT_PART(forward_out, ForwardOut, SUFFIX, T) \
    EXPORT_PART(tangent_in, TangentIn, SUFFIX, T)   \
    EXPORT_PART(tangent_out, TangentOut, SUFFIX, T) \
    EXPORT_PART(reverse_out, ReverseOut, SUFFIX, T) \
    EXPORT_PART(reverse_in, ReverseIn, SUFFIX, T)
EXPORT(f32, float)
EXPORT(f64, double)
