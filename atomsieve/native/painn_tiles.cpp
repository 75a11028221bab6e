// Make the tiles of a complete list; see painn_tiles.h.
#include "painn_tiles.h"

namespace {

using tiles::kPairs;

// Tiles of each structure, added up: first [S+1]. Returns their number.
int64_t count(int64_t structures, const int64_t *ptr, const int64_t *row_ptr, const int64_t *sender, int64_t *first) {
    int64_t total = first[0] = 0;
    for (int64_t s = 0; s < structures; ++s) {
        for (int64_t i = ptr[s]; i < ptr[s + 1]; ++i) {
            int64_t own = 0;
            for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) own += sender[e] >= i;
            total += (own + kPairs - 1) / kPairs;
        }
        first[s + 1] = total;
    }
    return total;
}

template <class T>
void fill(int64_t atoms, int64_t radial, const int64_t *row_ptr, const int64_t *sender, const T *A, const T *dA, const T *u,
          int64_t *atom, int64_t *near, int64_t *edge, T *basis, T *slope, T *unit) {
    int64_t t = -1;
    for (int64_t i = 0; i < atoms; ++i) {
        int place = kPairs;
        for (int64_t e = row_ptr[i]; e < row_ptr[i + 1]; ++e) {
            if (sender[e] < i) continue;
            if (place == kPairs) {
                place = 0;
                atom[++t] = i;
                for (int k = 0; k < kPairs; ++k) {
                    near[t * kPairs + k] = i;
                    edge[t * kPairs + k] = -1;
                }
                std::memset(basis + t * radial * kPairs, 0, sizeof(T) * radial * kPairs);
                std::memset(slope + t * radial * kPairs, 0, sizeof(T) * radial * kPairs);
                std::memset(unit + t * 3 * kPairs, 0, sizeof(T) * 3 * kPairs);
            }
            const T weight = sender[e] == i ? T(0.5) : T(1);
            near[t * kPairs + place] = sender[e];
            edge[t * kPairs + place] = e;
            for (int64_t r = 0; r < radial; ++r) {
                basis[(t * radial + r) * kPairs + place] = weight * A[e * radial + r];
                slope[(t * radial + r) * kPairs + place] = weight * dA[e * radial + r];
            }
            for (int x = 0; x < 3; ++x) unit[(t * 3 + x) * kPairs + place] = u[3 * e + x];
            ++place;
        }
    }
}

}  // namespace

extern "C" int64_t painn_count_tiles(int64_t structures, const int64_t *ptr, const int64_t *row_ptr, const int64_t *sender,
                                     int64_t *first) {
    return count(structures, ptr, row_ptr, sender, first);
}

#define EXPORT(NAME, T)                                                                                                  \
    extern "C" void painn_fill_tiles_##NAME(int64_t atoms, int64_t radial, const int64_t *row_ptr, const int64_t *sender, \
                                            const T *A, const T *dA, const T *u, int64_t *atom, int64_t *near,           \
                                            int64_t *edge, T *basis, T *slope, T *unit) {                                \
        fill(atoms, radial, row_ptr, sender, A, dA, u, atom, near, edge, basis, slope, unit);                            \
    }
EXPORT(f32, float)
EXPORT(f64, double)
