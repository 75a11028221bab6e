// Finds the half list of one structure: small ones by all pairs and images, large ones by cell lists.
#pragma once

#include <cstring>
#include <vector>

#include "lattice.h"
#include "points.h"

namespace atomsieve {

constexpr int32_t kAtomsForCellLists = 64;

struct Line {
  int64_t bin;   // within the cell
  int64_t step;  // cells away
};

struct Image {
  int32_t s[3];
  double t[3];
};

class Finder {
 public:
  explicit Finder(double cutoff) : cutoff_(cutoff), cutoff2_(cutoff * cutoff) {}

  // Append the half list of `n` atoms at `p` to `out`, and set for each atom the number of half entries in its row and
  // of edges that it receives. Edges: |p_j + s . cell - p_i| < cutoff, without an atom on itself unshifted. Rows are
  // sorted by sender, then shift. With `keep` false the entries are dropped and only counted.
  Fault find(const double* p, int32_t n, const double* cell, const uint8_t* pbc, int64_t max_per_atom, bool keep,
             HalfBuffer* out, int32_t* half, int32_t* received);

 private:
  Fault prepare(int64_t max_per_atom);
  void list_images();
  bool exactly_near(int32_t i, int32_t j, const int32_t* s) const;
  void row_of_all(int32_t i, HalfBuffer* out, int32_t* received);
  void sort_into_bins();
  void row_of_bins(int32_t i, HalfBuffer* out, int32_t* received);
  void to_cell(const int64_t* steps, int32_t* shift) const;

  double cutoff_, cutoff2_;
  double reach_ = 0, reach2_ = 0, surely2_ = 0;  // the radius of the search, and the one below which rounding is no issue
  int32_t n_ = 0;
  const double* p_ = nullptr;
  Lattice lattice_ = {};
  Points at_;                    // positions relative to the first atom
  std::vector<double> f_[3];     // their coordinates along the basis, 0 where not periodic
  // all pairs: every lattice translation that may join two atoms of the same cell, in order of the shift
  std::vector<Image> images_;
  Points moves_;
  std::vector<double> w_[3], r_[3];
  // cell lists: atoms sorted into bins along the basis (periodic) and the frame (not periodic)
  int64_t bins_[3] = {1, 1, 1}, around_[3] = {0, 0, 0};
  std::vector<int32_t> bin_of_[3], start_, sorted_;
  std::vector<int32_t> wrap_[3];
  std::vector<Line> line_[3];   // per axis, the bins from -around to bins + around
  Points binned_;
  std::vector<uint64_t> keys_;
  std::vector<Half> unsorted_;
};

inline void Finder::to_cell(const int64_t* steps, int32_t* shift) const {
  for (int c = 0; c < 3; ++c)
    shift[c] = static_cast<int32_t>(steps[0] * lattice_.to_cell[0][c] + steps[1] * lattice_.to_cell[1][c] +
                                    steps[2] * lattice_.to_cell[2][c]);
}

// The definition, in the given coordinates; asked only where the search could be wrong by rounding.
inline bool Finder::exactly_near(int32_t i, int32_t j, const int32_t* s) const {
  double d2 = 0;
  for (int c = 0; c < 3; ++c) {
    const double move = s[0] * lattice_.cell[0][c] + s[1] * lattice_.cell[1][c] + s[2] * lattice_.cell[2][c];
    const double d = (p_[3 * j + c] - p_[3 * i + c]) + move;
    d2 += d * d;
  }
  return d2 < cutoff2_;
}

// Coordinates, the search radius with room for rounding, and the bounds that stop absurd input.
inline Fault Finder::prepare(int64_t max_per_atom) {
  at_.resize(n_);
  for (int k = 3 - lattice_.rank; k < 3; ++k) f_[k].resize(n_);
  double low[3], high[3];
  for (int c = 0; c < 3; ++c) {
    double* out = c == 0 ? at_.x.data() : c == 1 ? at_.y.data() : at_.z.data();
    low[c] = high[c] = 0;
    for (int32_t i = 0; i < n_; ++i) {
      out[i] = p_[3 * i + c] - p_[c];
      if (!(std::fabs(out[i]) < 1e100)) return kBadPositions;
      low[c] = std::min(low[c], out[i]);
      high[c] = std::max(high[c], out[i]);
    }
  }
  for (int k = 3 - lattice_.rank; k < 3; ++k)
    for (int32_t i = 0; i < n_; ++i)
      f_[k][i] = at_.x[i] * lattice_.dual[k][0] + at_.y[i] * lattice_.dual[k][1] + at_.z[i] * lattice_.dual[k][2];

  const double extent = (high[0] - low[0]) + (high[1] - low[1]) + (high[2] - low[2]);
  double scale = extent, images = 1, most[3] = {0, 0, 0};
  for (int k = 0; k < 3; ++k) scale = std::max(scale, std::sqrt(dot(lattice_.basis[k], lattice_.basis[k])));
  const double slack = 1e-8 + 1e-13 * scale;
  reach_ = cutoff_ + slack;
  reach2_ = reach_ * reach_;
  surely2_ = cutoff_ > slack ? (cutoff_ - slack) * (cutoff_ - slack) : 0;
  for (int k = 0; k < 3; ++k) {
    images *= 2 * cutoff_ * lattice_.inverse_height[k] + 1;
    double span = extent + reach_;
    for (int m = 0; m < k; ++m) span += most[m] * std::fabs(lattice_.tri[m][k]);
    most[k] = span * lattice_.inverse_height[k];
  }
  for (int c = 0; c < 3; ++c) {
    double shift = 0;
    for (int k = 0; k < 3; ++k) shift += most[k] * std::fabs(static_cast<double>(lattice_.to_cell[k][c]));
    if (!(shift < 1e9) || !(most[c] < 1e9)) return kTooFar;
  }
  // about half of these points are within the cutoff, and at least an eighth
  return images > 8.0 * static_cast<double>(max_per_atom) ? kTooDense : kFine;
}

// All translations that can bring a point of the cell |fractional| <= 1/2 within reach: those whose distance from the
// cell's bounding box in the lattice frame is below the reach.
inline void Finder::list_images() {
  images_.clear();
  double box[3];
  for (int m = 0; m < 3; ++m) {
    box[m] = 1e-9 * reach_;
    for (int k = 0; k <= m; ++k) box[m] += 0.5000001 * std::fabs(lattice_.tri[k][m]);
  }
  const double(*tri)[3] = lattice_.tri;
  const double* inverse = lattice_.inverse_height;
  const int64_t last0 = static_cast<int64_t>((reach_ + box[0]) * inverse[0]);
  for (int64_t s0 = -last0; s0 <= last0; ++s0) {
    const double x = s0 * tri[0][0], ex = std::max(0.0, std::fabs(x) - box[0]), left1 = reach2_ - ex * ex;
    if (left1 < 0) continue;
    const double y0 = s0 * tri[0][1], r1 = std::sqrt(left1) + box[1];
    const int64_t last1 = static_cast<int64_t>(std::floor((r1 - y0) * inverse[1]));
    for (int64_t s1 = static_cast<int64_t>(std::ceil((-r1 - y0) * inverse[1])); s1 <= last1; ++s1) {
      const double y = y0 + s1 * tri[1][1], ey = std::max(0.0, std::fabs(y) - box[1]), left2 = left1 - ey * ey;
      if (left2 < 0) continue;
      const double z0 = s0 * tri[0][2] + s1 * tri[1][2], r2 = std::sqrt(left2) + box[2];
      const int64_t last2 = static_cast<int64_t>(std::floor((r2 - z0) * inverse[2]));
      for (int64_t s2 = static_cast<int64_t>(std::ceil((-r2 - z0) * inverse[2])); s2 <= last2; ++s2) {
        const int64_t steps[3] = {s0, s1, s2};
        Image image;
        to_cell(steps, image.s);
        for (int c = 0; c < 3; ++c)
          image.t[c] = s0 * lattice_.basis[0][c] + s1 * lattice_.basis[1][c] + s2 * lattice_.basis[2][c];
        images_.push_back(image);
      }
    }
  }
  if (!lattice_.natural)
    std::sort(images_.begin(), images_.end(), [](const Image& a, const Image& b) { return shift_before(a.s, b.s); });
  const int64_t count = static_cast<int64_t>(images_.size());
  moves_.resize(count);
  for (int64_t m = 0; m < count; ++m) {
    moves_.x[m] = images_[m].t[0];
    moves_.y[m] = images_[m].t[1];
    moves_.z[m] = images_[m].t[2];
  }
  for (auto& v : w_) v.resize(n_);
  for (auto& v : r_) v.resize(n_);
}

// Row i by looking at all atoms j >= i: the difference is brought near the origin by a lattice vector, then all images
// of it are tested.
inline void Finder::row_of_all(int32_t i, HalfBuffer* out, int32_t* received) {
  double *wx = w_[0].data(), *wy = w_[1].data(), *wz = w_[2].data();
  for (int32_t j = i; j < n_; ++j) {
    wx[j] = at_.x[j] - at_.x[i];
    wy[j] = at_.y[j] - at_.y[i];
    wz[j] = at_.z[j] - at_.z[i];
  }
  for (int k = 3 - lattice_.rank; k < 3; ++k) {
    const double *f = f_[k].data(), *b = lattice_.basis[k];
    double* r = r_[k].data();
    for (int32_t j = i; j < n_; ++j) {
      r[j] = std::floor(f[j] - f[i] + 0.5);
      wx[j] -= r[j] * b[0];
      wy[j] -= r[j] * b[1];
      wz[j] -= r[j] * b[2];
    }
  }
  const int64_t n_images = moves_.n;
  const int32_t zero[3] = {0, 0, 0};
  for (int32_t j = i; j < n_; ++j) {
    int32_t back[3];
    int32_t hits = 0;
    for (int64_t block = 0; block < n_images; block += 64) {
      uint64_t mask = near_points(moves_, block, std::min<int64_t>(64, n_images - block), wx[j], wy[j], wz[j], reach2_);
      if (!mask) continue;
      if (hits == 0) {
        int64_t steps[3] = {0, 0, 0};
        for (int k = 3 - lattice_.rank; k < 3; ++k) steps[k] = static_cast<int64_t>(r_[k][j]);
        to_cell(steps, back);
      }
      out->make_room(64);
      for (; mask; mask &= mask - 1) {
        const int64_t m = block + __builtin_ctzll(mask);
        const Image& image = images_[m];
        Half& h = out->data[out->size];
        h.j = j;
        for (int c = 0; c < 3; ++c) h.s[c] = image.s[c] - back[c];
        const double dx = wx[j] + image.t[0], dy = wy[j] + image.t[1], dz = wz[j] + image.t[2];
        if (dx * dx + dy * dy + dz * dz > surely2_ && !exactly_near(i, j, h.s)) continue;
        if (j == i && !shift_before(zero, h.s)) continue;
        ++out->size;
        ++hits;
      }
    }
    received[j] += hits;
    received[i] += hits;
  }
}

inline void Finder::sort_into_bins() {
  const double width = cutoff_;
  const int first = 3 - lattice_.rank;
  double span[3], low[3];
  for (int k = 0; k < 3; ++k) {
    wrap_[k].assign(n_, 0);
    bin_of_[k].resize(n_);
    if (k < first) {
      f_[k].resize(n_);
      const double* u = lattice_.frame[k];
      double most = low[k] = 0;  // the first atom is at the origin
      for (int32_t i = 0; i < n_; ++i) {
        f_[k][i] = at_.x[i] * u[0] + at_.y[i] * u[1] + at_.z[i] * u[2];
        low[k] = std::min(low[k], f_[k][i]);
        most = std::max(most, f_[k][i]);
      }
      span[k] = most - low[k];
    } else {
      span[k] = 1 / std::sqrt(dot(lattice_.dual[k], lattice_.dual[k]));
    }
    bins_[k] = std::max<int64_t>(1, static_cast<int64_t>(std::min(span[k] / width, 1e6)));
  }
  while (bins_[0] * bins_[1] * bins_[2] > 8 * static_cast<int64_t>(n_)) {
    int64_t& most = *std::max_element(bins_, bins_ + 3);
    most = (most + 1) / 2;
  }
  for (int k = 0; k < 3; ++k) {
    around_[k] = span[k] > 0 ? static_cast<int64_t>(std::ceil(reach_ * bins_[k] / span[k] + 1e-6)) : 0;
    if (k < first) around_[k] = std::min(around_[k], bins_[k] - 1);
    line_[k].clear();
    for (int64_t b = -around_[k]; b < bins_[k] + around_[k]; ++b) {
      const int64_t step = b >= 0 ? b / bins_[k] : -((-b + bins_[k] - 1) / bins_[k]);
      line_[k].push_back({b - step * bins_[k], step});
    }
    for (int32_t i = 0; i < n_; ++i) {
      double inside = f_[k][i];
      if (k >= first) {
        const double cells = std::floor(inside);
        wrap_[k][i] = static_cast<int32_t>(cells);
        inside -= cells;
      } else {
        inside = span[k] > 0 ? (inside - low[k]) / span[k] : 0;
      }
      bin_of_[k][i] = static_cast<int32_t>(std::min(bins_[k] - 1, static_cast<int64_t>(inside * bins_[k])));
    }
  }
  auto bin = [&](int32_t i) { return (bin_of_[0][i] * bins_[1] + bin_of_[1][i]) * bins_[2] + bin_of_[2][i]; };
  start_.assign(bins_[0] * bins_[1] * bins_[2] + 1, 0);
  for (int32_t i = 0; i < n_; ++i) ++start_[bin(i) + 1];
  for (size_t b = 1; b < start_.size(); ++b) start_[b] += start_[b - 1];
  sorted_.resize(n_);
  for (int32_t i = n_ - 1; i >= 0; --i) {  // from behind, with start_ used as the end: afterwards it is the start again
    const int64_t b = bin(i);
    sorted_[--start_[b + 1]] = i;
  }
  for (size_t b = 0; b + 1 < start_.size(); ++b) start_[b] = start_[b + 1];
  start_.back() = n_;
  binned_.resize(n_);
  for (int32_t place = 0; place < n_; ++place) {
    const int32_t i = sorted_[place];
    double d[3] = {at_.x[i], at_.y[i], at_.z[i]};
    for (int k = first; k < 3; ++k)
      for (int c = 0; c < 3; ++c) d[c] -= wrap_[k][i] * lattice_.basis[k][c];
    binned_.x[place] = d[0];
    binned_.y[place] = d[1];
    binned_.z[place] = d[2];
  }
}

// Row i by looking at the bins around it; bins along the last axis lie side by side in memory.
inline void Finder::row_of_bins(int32_t i, HalfBuffer* out, int32_t* received) {
  const int first = 3 - lattice_.rank;
  double home[3] = {at_.x[i], at_.y[i], at_.z[i]};
  for (int k = first; k < 3; ++k)
    for (int c = 0; c < 3; ++c) home[c] -= wrap_[k][i] * lattice_.basis[k][c];
  unsorted_.clear();
  keys_.clear();
  int64_t low[3], high[3];  // places in line_
  for (int k = 0; k < 3; ++k) {
    low[k] = bin_of_[k][i];
    high[k] = low[k] + 2 * around_[k];
    if (k < first) {
      low[k] = std::max(low[k], around_[k]);
      high[k] = std::min(high[k], around_[k] + bins_[k] - 1);
    }
  }
  const int32_t zero[3] = {0, 0, 0};
  for (int64_t b0 = low[0]; b0 <= high[0]; ++b0) {
    for (int64_t b1 = low[1]; b1 <= high[1]; ++b1) {
      const Line outer = line_[0][b0], inner = line_[1][b1];
      const int32_t* start = &start_[(outer.bin * bins_[1] + inner.bin) * bins_[2]];
      double corner[3];
      for (int c = 0; c < 3; ++c)
        corner[c] = outer.step * lattice_.basis[0][c] + inner.step * lattice_.basis[1][c] - home[c];
      for (int64_t b2 = low[2]; b2 <= high[2];) {
        const Line run = line_[2][b2];
        const int64_t length = std::min(high[2] - b2 + 1, bins_[2] - run.bin);
        const int64_t begin = start[run.bin], end = start[run.bin + length];
        b2 += length;
        if (begin == end) continue;
        const int64_t steps[3] = {outer.step, inner.step, run.step};
        double move[3];
        for (int c = 0; c < 3; ++c) move[c] = corner[c] + run.step * lattice_.basis[2][c];
        for (int64_t block = begin; block < end; block += 64) {
          uint64_t mask = near_points(binned_, block, std::min<int64_t>(64, end - block), move[0], move[1], move[2],
                                      reach2_);
          for (; mask; mask &= mask - 1) {
            const int64_t place = block + __builtin_ctzll(mask);
            const int32_t j = sorted_[place];
            if (j < i) continue;
            Half h;
            h.j = j;
            int64_t total[3];
            for (int k = 0; k < 3; ++k) total[k] = steps[k] - wrap_[k][j] + wrap_[k][i];
            to_cell(total, h.s);
            if (j == i && !shift_before(zero, h.s)) continue;
            const double dx = binned_.x[place] + move[0], dy = binned_.y[place] + move[1],
                         dz = binned_.z[place] + move[2];
            if (dx * dx + dy * dy + dz * dz > surely2_ && !exactly_near(i, j, h.s)) continue;
            keys_.push_back(static_cast<uint64_t>(j) << 32 | unsorted_.size());
            unsorted_.push_back(h);
          }
        }
      }
    }
  }
  std::sort(keys_.begin(), keys_.end());
  out->make_room(keys_.size());
  Half* row = out->data + out->size;
  const int64_t count = static_cast<int64_t>(keys_.size());
  for (int64_t k = 0; k < count; ++k) {
    const Half h = unsorted_[keys_[k] & 0xffffffffu];
    int64_t place = k;
    for (; place > 0 && row[place - 1].j == h.j && shift_before(h.s, row[place - 1].s); --place)
      row[place] = row[place - 1];
    row[place] = h;
    ++received[h.j];
  }
  received[i] += static_cast<int32_t>(count);
  out->size += count;
}

inline Fault Finder::find(const double* p, int32_t n, const double* cell, const uint8_t* pbc, int64_t max_per_atom,
                          bool keep, HalfBuffer* out, int32_t* half, int32_t* received) {
  n_ = n;
  p_ = p;
  if (n == 0) return kFine;
  for (int c = 0; c < 3; ++c)
    if (!(std::fabs(p[c]) < 1e100)) return kBadPositions;
  Fault fault = lattice_.set(cell, pbc);
  if (fault == kFine) fault = prepare(max_per_atom);
  if (fault != kFine) return fault;
  const bool large = n > kAtomsForCellLists;
  if (large)
    sort_into_bins();
  else
    list_images();
  std::memset(received, 0, sizeof(int32_t) * n);
  for (int32_t i = 0; i < n; ++i) {
    const size_t before = out->size;
    if (large)
      row_of_bins(i, out, received);
    else
      row_of_all(i, out, received);
    if (received[i] > max_per_atom) return kTooDense;
    half[i] = static_cast<int32_t>(out->size - before);
    if (!keep) out->size = before;
  }
  return kFine;
}

}  // namespace atomsieve
