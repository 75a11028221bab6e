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
    Filters(const T *a, int64_t radial, const T *weights, int64_t width) : w{} {
        for (int64_t r = 0; r < radial; ++r, a += kPairs, weights += 3 * width) {
            const V s = load(weights), b = load(weights + 2 * width);
            for (int k = 0; k < kPairs; ++k) {
                w[0][k] += s * a[k];
                w[2][k] += b * a[k];
            }
            if constexpr (!first) {
                const V c = load(weights + width);
                for (int k = 0; k < kPairs; ++k) w[1][k] += c * a[k];
            }
        }
    }
};

}  // namespace tiles
