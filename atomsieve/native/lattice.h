// The periodic directions of one structure, in the form that enumerating lattice points needs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

namespace atomsieve {

enum Fault : int { kFine = 0, kBadPositions, kBadCell, kTooDense, kTooManyEdges, kTooFar, kNoMemory };

// The first two are the same numbers as in graphs/limits.py.
constexpr double kShortestVector = 1e-4;  // Angstrom; a shorter periodic vector makes the cell singular
constexpr double kLargestDefect = 1e8;    // so does a product of lengths above the volume by this factor
constexpr double kReduceAbove = 1.3;      // above it the vectors are shortened before images are listed

inline double dot(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

inline void cross(const double* a, const double* b, double* out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

inline double normalise(double* a) {
  const double length = std::sqrt(dot(a, a));
  if (length > 0)
    for (int k = 0; k < 3; ++k) a[k] /= length;
  return length;
}

// The periodic vectors of a cell, shortened, in triangular form. `basis` has them last and zero rows for directions
// without periodicity; `frame` is orthonormal, frame[k] perpendicular to basis[k+1..2], and tri[k][m] = basis[k] .
// frame[m]. Only the periodic cell vectors are looked at: the others may be zero, short or long.
struct Lattice {
  double cell[3][3];         // as given, zero rows where not periodic
  double basis[3][3];
  int64_t to_cell[3][3];     // basis[k] = sum_m to_cell[k][m] cell[m]
  double frame[3][3];
  double tri[3][3];
  double inverse_height[3];  // 1/tri[k][k], 0 for a direction without periodicity
  double dual[3][3];         // dual[k] . basis[m] = (k == m), zero rows where not periodic
  int rank;
  bool natural;              // basis = periodic cell vectors in axis order

  Fault set(const double* given, const uint8_t* periodic);

 private:
  int first() const { return 3 - rank; }
  void build_frame();
  double defect() const;
  void reduce();
};

// Gram-Schmidt from the innermost vector outwards; directions without a vector are filled with any perpendicular.
inline void Lattice::build_frame() {
  for (int k = 2; k >= 0; --k) {
    double* u = frame[k];
    std::copy(basis[k], basis[k] + 3, u);
    double height = 0;
    if (k >= first()) {
      for (int pass = 0; pass < 2; ++pass)  // twice is enough for orthogonality to rounding
        for (int m = 2; m > k; --m) {
          const double along = dot(u, frame[m]);
          for (int c = 0; c < 3; ++c) u[c] -= along * frame[m][c];
        }
      height = normalise(u);
    }
    if (!(height > 0)) {
      double best = -1;
      for (int axis = 0; axis < 3; ++axis) {
        double trial[3] = {0, 0, 0};
        trial[axis] = 1;
        for (int m = 2; m > k; --m) {
          const double along = dot(trial, frame[m]);
          for (int c = 0; c < 3; ++c) trial[c] -= along * frame[m][c];
        }
        const double size = normalise(trial);
        if (size > best) {
          best = size;
          std::copy(trial, trial + 3, u);
        }
      }
    }
    tri[k][k] = height;
    inverse_height[k] = height > 0 ? 1 / height : 0;
    for (int m = 0; m < 3; ++m)
      if (m != k) tri[k][m] = m > k ? dot(basis[k], frame[m]) : 0;
  }
  for (int k = 0; k < 3; ++k) {
    double along[3] = {0, 0, 0};
    for (int m = k; m >= first() && k >= first(); --m) {
      double rest = m == k ? 1 : 0;
      for (int l = m + 1; l < 3; ++l) rest -= tri[m][l] * along[l];
      along[m] = rest * inverse_height[m];
    }
    for (int c = 0; c < 3; ++c) dual[k][c] = along[0] * frame[0][c] + along[1] * frame[1][c] + along[2] * frame[2][c];
  }
}

// Product of the lengths over the volume that they span: 1 for a right-angled cell, infinite for a flat one.
inline double Lattice::defect() const {
  double out = 1;
  for (int k = first(); k < 3; ++k) out *= std::sqrt(dot(basis[k], basis[k])) / tri[k][k];
  return out;
}

// Shorten the vectors until no sum or difference of them is shorter, then put the shortest innermost.
inline void Lattice::reduce() {
  const int f = first();
  auto norm2 = [&](int k) { return dot(basis[k], basis[k]); };
  auto add = [&](int k, int m, double times) {
    for (int c = 0; c < 3; ++c) basis[k][c] += times * basis[m][c];
    for (int c = 0; c < 3; ++c) to_cell[k][c] += static_cast<int64_t>(times) * to_cell[m][c];
  };
  bool changed = true;
  for (int round = 0; changed && round < 200; ++round) {
    changed = false;
    for (int k = f; k < 3; ++k)
      for (int m = f; m < 3; ++m) {
        if (k == m || !(norm2(m) > 0)) continue;
        const double times = std::nearbyint(dot(basis[k], basis[m]) / norm2(m));
        const double gain = times * times * norm2(m) - 2 * times * dot(basis[k], basis[m]);
        if (std::fabs(times) > 1e9 || gain > -1e-12 * norm2(k)) continue;
        add(k, m, -times);
        changed = true;
      }
    if (changed || rank < 3) continue;
    for (int k = 0; k < 3; ++k)
      for (int signs = 0; signs < 4; ++signs) {
        const int m = (k + 1) % 3, n = (k + 2) % 3;
        const double a = signs & 1 ? -1 : 1, b = signs & 2 ? -1 : 1;
        double sum[3];
        for (int c = 0; c < 3; ++c) sum[c] = basis[k][c] + a * basis[m][c] + b * basis[n][c];
        if (dot(sum, sum) < norm2(k) * (1 - 1e-12)) {
          add(k, m, a);
          add(k, n, b);
          changed = true;
        }
      }
  }
  for (int pass = 0; pass < 2; ++pass)
    for (int k = f; k < 2; ++k)
      if (norm2(k) < norm2(k + 1)) {
        std::swap(basis[k], basis[k + 1]);
        std::swap(to_cell[k], to_cell[k + 1]);
      }
}

inline Fault Lattice::set(const double* given, const uint8_t* periodic) {
  rank = 0;
  natural = true;
  for (int k = 0; k < 3; ++k) rank += periodic[k] ? 1 : 0;
  int place = first();
  for (int k = 0; k < 3; ++k)
    for (int c = 0; c < 3; ++c) basis[k][c] = to_cell[k][c] = 0;
  for (int k = 0; k < 3; ++k) {
    for (int c = 0; c < 3; ++c) {
      const double value = periodic[k] ? given[3 * k + c] : 0.0;
      if (!(std::fabs(value) < 1e100)) return kBadCell;  // also true for NaN
      cell[k][c] = value;
      if (periodic[k]) basis[place][c] = value;
    }
    if (periodic[k]) to_cell[place++][k] = 1;
  }
  build_frame();
  for (int k = first(); k < 3; ++k)
    if (!(std::sqrt(dot(basis[k], basis[k])) > kShortestVector)) return kBadCell;
  const double skew = defect();
  if (!(skew < kLargestDefect)) return kBadCell;
  if (skew > kReduceAbove) {
    reduce();
    natural = false;
    build_frame();
  }
  for (int k = first(); k < 3; ++k)
    if (!(tri[k][k] > 0)) return kBadCell;
  return kFine;
}

}  // namespace atomsieve
