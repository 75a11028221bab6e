// Tiles of pairs: how the kernels that train PaiNN go through the edges of a complete list.
//
// An edge and its reverse have one filter, so both are handled together: a pair (i, j) with j >= i stands for j -> i with
// direction u and i -> j with -u. A tile holds up to four pairs of one atom i. An edge from an atom to its own image comes
// twice, once for each direction; each counts half, by half its basis. Members share tiles.
#pragma once
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "lanes.h"

namespace tiles {

using lanes::Lanes;
using lanes::load;
using lanes::store;
using lanes::sum;

constexpr int kPairs = 4;

// As atomsieve/models/painn/tiles.py fills it. An empty place has edge -1, sender i, and a basis of zeros.
struct Tiles {
    int64_t members, atoms, edges, width, radial, structures;
    const int64_t *first;             // [S+1] tiles of a structure
    const int64_t *atom;              // [T] i
    const int64_t *near, *edge;       // [T,4] j, and the edge from j to i
    const void *basis, *slope, *unit; // [T,R,4], [T,R,4], [T,3,4]
};

// Call body(thread, member, first tile, last tile) for all structures of all members: no two tasks share an atom.
template <class Body> inline void for_tiles(const Tiles &t, Body body) {
    const int64_t tasks = t.members * t.structures;
#ifdef _OPENMP
#pragma omp parallel
    {
        const int thread = omp_get_thread_num();
#pragma omp for schedule(static)
        for (int64_t k = 0; k < tasks; ++k)
            body(thread, k / t.structures, t.first[k % t.structures], t.first[k % t.structures + 1]);
    }
#else
    for (int64_t k = 0; k < tasks; ++k) body(0, k / t.structures, t.first[k % t.structures], t.first[k % t.structures + 1]);
#endif
}

inline int threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// Filters of four pairs for one register of channels: w[g][k] of group g = s, a, b. `first`: group a is left out.
template <class T, bool first> struct Filters {
    using V = typename Lanes<T>::V;
    V w[3][kPairs];
    // a [R,4]: basis of the tile; weights: at the channels
    Filters(const T *a, int64_t radial, const T *weights, int64_t width) {
        // Named one by one: what is looked up by a number later would be added up in memory.
        V s0{}, s1{}, s2{}, s3{}, c0{}, c1{}, c2{}, c3{}, b0{}, b1{}, b2{}, b3{};
        for (int64_t r = 0; r < radial; ++r, a += kPairs, weights += 3 * width) {
            const V s = load(weights), b = load(weights + 2 * width);
            s0 += s * a[0], s1 += s * a[1], s2 += s * a[2], s3 += s * a[3];
            b0 += b * a[0], b1 += b * a[1], b2 += b * a[2], b3 += b * a[3];
            if constexpr (!first) {
                const V c = load(weights + width);
                c0 += c * a[0], c1 += c * a[1], c2 += c * a[2], c3 += c * a[3];
            }
        }
        w[0][0] = s0, w[0][1] = s1, w[0][2] = s2, w[0][3] = s3;
        w[1][0] = c0, w[1][1] = c1, w[1][2] = c2, w[1][3] = c3;
        w[2][0] = b0, w[2][1] = b1, w[2][2] = b2, w[2][3] = b3;
    }
};

// into[r] += sum_k c[k] a[r,k] for all radial functions, rows of `wide` weights apart: what four pairs add to one register.
template <class T>
inline void add_outer(const typename Lanes<T>::V *c, const T *a, int64_t radial, int64_t wide, T *into) {
    const typename Lanes<T>::V c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
    for (int64_t r = 0; r < radial; ++r, a += kPairs, into += wide)
        store(into, load(into) + ((c0 * a[0] + c1 * a[1]) + (c2 * a[2] + c3 * a[3])));
}

template <class T>
inline void add_outer(const typename Lanes<T>::V *c, const T *a, const typename Lanes<T>::V *d, const T *b, int64_t radial,
                      int64_t wide, T *into) {
    const typename Lanes<T>::V c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3], d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
    for (int64_t r = 0; r < radial; ++r, a += kPairs, b += kPairs, into += wide)
        store(into, load(into) + ((c0 * a[0] + c1 * a[1]) + (c2 * a[2] + c3 * a[3])) +
                        ((d0 * b[0] + d1 * b[1]) + (d2 * b[2] + d3 * b[3])));
}

}  // namespace tiles
