// Batched neighbour list: every pair (i <= j) of a structure is looked at once and both directions are written, so the
// list is symmetric by construction, whatever the rounding. Two phases: `build` finds the half list of each structure
// (threads over structures, each with its own buffer), `fill` writes the sorted edges to their final places. What is
// written does not depend on the number of threads.
//
// Order: receiver, then sender, then shift (lexicographic). Pairs come in the order (i, j), i <= j, shifts ascending:
// then each receiver meets its senders in ascending order and one cursor per atom sorts the edges.
#include <omp.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "lattice.h"

namespace atomsieve {
namespace {

struct Input {
  int64_t n_structures;
  const int64_t* ptr;
  const double* positions;
  const double* cell;
  const uint8_t* pbc;
  double cutoff;
};

struct Half {  // edge from j to the atom whose row it is in, j >= i; the reverse edge is implied
  int32_t j;
  int32_t s[3];
};

inline bool before(const Half& a, const Half& b) {
  if (a.j != b.j) return a.j < b.j;
  for (int k = 0; k < 3; ++k)
    if (a.s[k] != b.s[k]) return a.s[k] < b.s[k];
  return false;
}

struct Limits {
  int64_t per_atom;
  int64_t total;
};

// One structure at a time; the vectors keep their memory from structure to structure.
class Finder {
 public:
  explicit Finder(double cutoff) : cutoff_(cutoff) {}

  // Append the half list of a structure to `out` (unless null) and set per atom the number of half entries (unless
  // null) and of edges received.
  Fault find(const Input& in, int64_t s, const Limits& limits, std::vector<Half>* out, int32_t* half, int32_t* received);

 private:
  bool prepare(Fault* fault, int64_t per_atom);
  Fault all_pairs(int64_t per_atom);
  void row(int32_t i);
  void pair(int32_t i, int32_t j);
  void candidate(int32_t i, int32_t j, const int64_t* s);

  double cutoff_, cutoff2_ = 0, reach_ = 0, reach2_ = 0;
  int32_t n_ = 0;
  const double* p_ = nullptr;
  Lattice lattice_;
  std::vector<double> q_;     // [3][n] positions in the frame of the lattice, relative to the first atom
  std::vector<Half> found_;   // entries of the current row
  std::vector<Half> self_;    // images of an atom on itself, the same for all atoms
};

// Coordinates in the lattice frame, the search radius with room for rounding, and the bounds that stop absurd input.
bool Finder::prepare(Fault* fault, int64_t per_atom) {
  q_.resize(3 * static_cast<size_t>(n_));
  double extent = 0;
  for (int32_t i = 0; i < n_; ++i) {
    double d[3];
    for (int c = 0; c < 3; ++c) d[c] = p_[3 * i + c] - p_[c];
    for (int k = 0; k < 3; ++k) q_[k * n_ + i] = dot(d, lattice_.frame[k]);
    const double size = std::fabs(d[0]) + std::fabs(d[1]) + std::fabs(d[2]);
    if (!(size < 1e100)) {
      *fault = kBadPositions;
      return false;
    }
    extent = std::max(extent, size);
  }
  extent *= 2;
  double scale = extent;
  for (int k = 0; k < 3; ++k) scale = std::max(scale, std::sqrt(dot(lattice_.basis[k], lattice_.basis[k])));
  cutoff2_ = cutoff_ * cutoff_;
  reach_ = cutoff_ + 1e-8 + 1e-13 * scale;
  reach2_ = reach_ * reach_;
  double images = 1, most[3] = {0, 0, 0};
  for (int k = 0; k < 3; ++k) {
    images *= 2 * reach_ * lattice_.inverse_height[k] + 1;
    double span = extent + reach_;
    for (int m = 0; m < k; ++m) span += most[m] * std::fabs(lattice_.tri[m][k]);
    most[k] = span * lattice_.inverse_height[k];
  }
  for (int c = 0; c < 3; ++c) {
    double shift = 0;
    for (int k = 0; k < 3; ++k) shift += most[k] * std::fabs(static_cast<double>(lattice_.to_cell[k][c]));
    if (!(shift < 1e9) || !(most[c] < 1e9)) {
      *fault = kTooFar;
      return false;
    }
  }
  if (images > 8.0 * static_cast<double>(per_atom)) {  // at least an eighth of these points are within the cutoff
    *fault = kTooDense;
    return false;
  }
  return true;
}

inline void Finder::candidate(int32_t i, int32_t j, const int64_t* s) {
  int64_t t[3];
  for (int c = 0; c < 3; ++c)
    t[c] = s[0] * lattice_.to_cell[0][c] + s[1] * lattice_.to_cell[1][c] + s[2] * lattice_.to_cell[2][c];
  double d2 = 0;
  for (int c = 0; c < 3; ++c) {
    const double move = t[0] * lattice_.cell[0][c] + t[1] * lattice_.cell[1][c] + t[2] * lattice_.cell[2][c];
    const double d = (p_[3 * j + c] - p_[3 * i + c]) + move;
    d2 += d * d;
  }
  if (d2 < cutoff2_)
    found_.push_back({j, {static_cast<int32_t>(t[0]), static_cast<int32_t>(t[1]), static_cast<int32_t>(t[2])}});
}

// Planes, lines in a plane, points on a line: each loop covers the part of its range that the sphere cuts out.
void Finder::pair(int32_t i, int32_t j) {
  const double(*tri)[3] = lattice_.tri;
  const double* inverse = lattice_.inverse_height;
  const double d0 = q_[j] - q_[i], d1 = q_[n_ + j] - q_[n_ + i], d2 = q_[2 * n_ + j] - q_[2 * n_ + i];
  const size_t start = found_.size();
  const double last0 = std::floor((reach_ - d0) * inverse[0]);
  for (double s0 = std::ceil((-reach_ - d0) * inverse[0]); s0 <= last0; s0 += 1) {
    const double x = d0 + s0 * tri[0][0], left1 = reach2_ - x * x;
    if (left1 < 0) continue;
    const double r1 = std::sqrt(left1), y0 = d1 + s0 * tri[0][1];
    const double last1 = std::floor((r1 - y0) * inverse[1]);
    for (double s1 = std::ceil((-r1 - y0) * inverse[1]); s1 <= last1; s1 += 1) {
      const double y = y0 + s1 * tri[1][1], left2 = left1 - y * y;
      if (left2 < 0) continue;
      const double r2 = std::sqrt(left2), z0 = d2 + s0 * tri[0][2] + s1 * tri[1][2];
      if (inverse[2] == 0 && std::fabs(z0) > r2) continue;
      const double last2 = std::floor((r2 - z0) * inverse[2]);
      for (double s2 = std::ceil((-r2 - z0) * inverse[2]); s2 <= last2; s2 += 1) {
        const int64_t s[3] = {static_cast<int64_t>(s0), static_cast<int64_t>(s1), static_cast<int64_t>(s2)};
        candidate(i, j, s);
      }
    }
  }
  if (!lattice_.natural && found_.size() - start > 1) std::sort(found_.begin() + start, found_.end(), before);
}

// The images of one atom: only shifts above zero are kept, the others are their reverses.
void self_images(std::vector<Half>* found, std::vector<Half>* self) {
  self->clear();
  const Half zero{(*found).empty() ? 0 : (*found)[0].j, {0, 0, 0}};
  for (const Half& h : *found)
    if (before(zero, h)) self->push_back(h);
}

void Finder::row(int32_t i) {
  found_.clear();
  for (Half h : self_) {
    h.j = i;
    found_.push_back(h);
  }
  for (int32_t j = i + 1; j < n_; ++j) pair(i, j);
}

Fault Finder::find(const Input& in, int64_t s, const Limits& limits, std::vector<Half>* out, int32_t* half,
                   int32_t* received) {
  const int64_t first = in.ptr[s];
  n_ = static_cast<int32_t>(in.ptr[s + 1] - first);
  if (n_ == 0) return kFine;
  p_ = in.positions + 3 * first;
  for (int c = 0; c < 3; ++c)
    if (!(std::fabs(p_[c]) < 1e100)) return kBadPositions;
  Fault fault = lattice_.set(in.cell + 9 * s, in.pbc + 3 * s);
  if (fault != kFine || !prepare(&fault, limits.per_atom)) return fault;
  std::memset(received, 0, sizeof(int32_t) * n_);
  self_.clear();
  if (lattice_.rank > 0) {
    found_.clear();
    pair(0, 0);
    self_images(&found_, &self_);
  }
  for (int32_t i = 0; i < n_; ++i) {
    row(i);
    for (const Half& h : found_) ++received[h.j];
    received[i] += static_cast<int32_t>(found_.size());
    if (received[i] > limits.per_atom) return kTooDense;
    if (half) half[i] = static_cast<int32_t>(found_.size());
    if (out) out->insert(out->end(), found_.begin(), found_.end());
  }
  return kFine;
}

struct Edges {  // where to write; any of the arrays may be null
  int64_t* sender;
  int64_t* receiver;
  int32_t* shift;
  double* vec64;
  float* vec32;
};

// Write the edges of one structure. `cursor[i]` is the place of the next edge of atom i and ends behind its last.
void fill_structure(const Input& in, int64_t s, const Half* entry, const int32_t* half, int64_t* cursor,
                    const Edges& to) {
  const int64_t first = in.ptr[s];
  const int32_t n = static_cast<int32_t>(in.ptr[s + 1] - first);
  const double* p = in.positions + 3 * first;
  double cell[9];
  for (int k = 0; k < 9; ++k) cell[k] = in.pbc[3 * s + k / 3] ? in.cell[9 * s + k] : 0.0;
  auto write = [&](int64_t e, int32_t sender, int32_t receiver, const Half& h, const double* vec, int sign) {
    if (to.sender) to.sender[e] = first + sender;
    if (to.receiver) to.receiver[e] = first + receiver;
    for (int c = 0; c < 3; ++c) {
      if (to.shift) to.shift[3 * e + c] = sign * h.s[c];
      if (to.vec64) to.vec64[3 * e + c] = sign * vec[c];
      if (to.vec32) to.vec32[3 * e + c] = static_cast<float>(sign * vec[c]);
    }
  };
  for (int32_t i = 0; i < n; ++i) {
    const Half* const row_end = entry + half[i];
    while (entry < row_end) {
      const int32_t j = entry->j;
      const Half* end = entry;
      while (end < row_end && end->j == j) ++end;
      const int64_t m = end - entry;
      const int64_t reverse = cursor[j] + m - 1;  // an atom's own images: the negative shifts come first
      cursor[j] += m;
      const int64_t direct = cursor[i];
      cursor[i] += m;
      for (int64_t k = 0; k < m; ++k) {
        const Half& h = entry[k];
        double vec[3];
        for (int c = 0; c < 3; ++c)
          vec[c] = (p[3 * j + c] - p[3 * i + c]) + (h.s[0] * cell[c] + h.s[1] * cell[3 + c] + h.s[2] * cell[6 + c]);
        write(direct + k, j, i, h, vec, 1);
        write(reverse - k, i, j, h, vec, -1);
      }
      entry = end;
    }
  }
}

struct Place {
  int32_t thread;
  int64_t offset;
};

struct List {
  Input in;
  std::vector<int32_t> half, received;
  std::vector<Place> place;
  std::vector<std::vector<Half>> buffers;
  int64_t keep = 0;  // neighbours kept per atom, 0: all
};

// Run `work(thread, structure)` over all structures; with one thread OpenMP is not entered (safe after a fork).
template <class Work>
void over_structures(int64_t n, int threads, Work work) {
  if (threads <= 1 || n <= 1) {
    for (int64_t s = 0; s < n; ++s) work(0, s);
    return;
  }
  const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(64, n / (8 * threads)));
#pragma omp parallel for num_threads(threads) schedule(dynamic, chunk)
  for (int64_t s = 0; s < n; ++s) work(omp_get_thread_num(), s);
}

int64_t search(List* list, const Limits& limits, int threads, bool keep, int64_t* per_structure, int64_t* bad) {
  const Input& in = list->in;
  std::vector<Finder> finders(threads, Finder(in.cutoff));
  std::vector<int> faults(in.n_structures, kFine);
  std::atomic<int64_t> total{0};
  over_structures(in.n_structures, threads, [&](int thread, int64_t s) {
    if (total.load(std::memory_order_relaxed) > limits.total) return;
    try {
      const int64_t first = in.ptr[s], n = in.ptr[s + 1] - first;
      std::vector<Half>* out = keep ? &list->buffers[thread] : nullptr;
      if (keep) list->place[s] = {thread, static_cast<int64_t>(out->size())};
      faults[s] = finders[thread].find(in, s, limits, out, keep ? &list->half[first] : nullptr, &list->received[first]);
      int64_t edges = 0;
      for (int64_t i = first; i < first + n; ++i) edges += list->received[i];
      total.fetch_add(edges, std::memory_order_relaxed);
      if (per_structure) per_structure[s] = edges;
    } catch (const std::bad_alloc&) {
      faults[s] = kNoMemory;
    }
  });
  for (int64_t s = 0; s < in.n_structures; ++s)
    if (faults[s] != kFine) {
      *bad = s;
      return -faults[s];
    }
  *bad = -1;
  return total > limits.total ? -static_cast<int64_t>(kTooManyEdges) : total.load();
}

// The structure's edges with at most `keep` per receiver: the shortest, of equally long ones the first in list order.
// Lengths count as equal within 1e-8 Angstrom, so that rounding does not choose between symmetric neighbours.
struct Pruner {
  std::vector<int64_t> sender, cursor, order, length;
  std::vector<int32_t> shift;
  std::vector<double> vec;

  void run(const List& list, int64_t s, const Half* entry, const int64_t* row_ptr, const Edges& to) {
    const int64_t first = list.in.ptr[s], n = list.in.ptr[s + 1] - first;
    const int32_t* received = &list.received[first];
    cursor.resize(n);
    int64_t all = 0;
    for (int64_t i = 0; i < n; all += received[i++]) cursor[i] = all;
    sender.resize(all);
    shift.resize(3 * all);
    vec.resize(3 * all);
    fill_structure(list.in, s, entry, &list.half[first], cursor.data(),
                   {sender.data(), nullptr, shift.data(), vec.data(), nullptr});
    for (int64_t i = 0; i < n; ++i) {
      const int64_t start = cursor[i] - received[i], out = row_ptr[first + i], kept = row_ptr[first + i + 1] - out;
      choose(start, received[i], kept);
      for (int64_t k = 0; k < kept; ++k) {
        const int64_t e = start + order[k];
        if (to.sender) to.sender[out + k] = sender[e];
        if (to.receiver) to.receiver[out + k] = first + i;
        for (int c = 0; c < 3; ++c) {
          if (to.shift) to.shift[3 * (out + k) + c] = shift[3 * e + c];
          if (to.vec64) to.vec64[3 * (out + k) + c] = vec[3 * e + c];
          if (to.vec32) to.vec32[3 * (out + k) + c] = static_cast<float>(vec[3 * e + c]);
        }
      }
    }
  }

  void choose(int64_t start, int64_t from, int64_t kept) {
    order.resize(from);
    for (int64_t k = 0; k < from; ++k) order[k] = k;
    if (kept == from) return;
    length.resize(from);
    for (int64_t k = 0; k < from; ++k)
      length[k] = std::llrint(1e8 * std::sqrt(dot(&vec[3 * (start + k)], &vec[3 * (start + k)])));
    std::nth_element(order.begin(), order.begin() + kept, order.end(), [this](int64_t a, int64_t b) {
      return length[a] != length[b] ? length[a] < length[b] : a < b;
    });
    std::sort(order.begin(), order.begin() + kept);
  }
};

}  // namespace
}  // namespace atomsieve

extern "C" {

// Find all edges shorter than `cutoff`. Returns their number and sets `*out` (to be freed), or returns minus a Fault
// and sets `*bad` to the structure that has it (-1: none in particular). The input arrays must outlive the list.
int64_t atomsieve_neighbors_build(int64_t n_structures, const int64_t* ptr, const double* positions, const double* cell,
                                  const uint8_t* pbc, double cutoff, int64_t max_neighbors, int64_t max_per_atom,
                                  int64_t max_edges, int threads, void** out, int64_t* bad, int64_t* dropped) {
  using namespace atomsieve;
  *out = nullptr;
  *bad = -1;
  *dropped = 0;
  try {
    auto list = std::make_unique<List>();
    list->in = {n_structures, ptr, positions, cell, pbc, cutoff};
    list->half.resize(ptr[n_structures]);
    list->received.resize(ptr[n_structures]);
    list->place.resize(n_structures);
    list->buffers.resize(threads);
    list->keep = max_neighbors;
    int64_t total = search(list.get(), {max_per_atom, max_edges}, threads, true, nullptr, bad);
    if (total < 0) return total;
    if (max_neighbors > 0)
      for (int32_t count : list->received) *dropped += std::max<int64_t>(0, count - max_neighbors);
    *out = list.release();
    return total - *dropped;
  } catch (const std::bad_alloc&) {
    return -kNoMemory;
  }
}

// Write the edges, sorted, and `row_ptr [N+1]`. `vec64` or `vec32` may be null. Returns 0 or minus a Fault.
int64_t atomsieve_neighbors_fill(const void* handle, int threads, int64_t* sender, int64_t* receiver, int32_t* shift,
                                 int64_t* row_ptr, double* vec64, float* vec32) {
  using namespace atomsieve;
  const List& list = *static_cast<const List*>(handle);
  const Input& in = list.in;
  const int64_t n = in.ptr[in.n_structures];
  row_ptr[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t count = list.received[i];
    row_ptr[i + 1] = row_ptr[i] + (list.keep > 0 ? std::min(count, list.keep) : count);
  }
  const Edges to{sender, receiver, shift, vec64, vec32};
  std::atomic<int> fault{kFine};
  try {
    std::vector<Pruner> pruners(threads);
    std::vector<std::vector<int64_t>> cursors(threads);
    over_structures(in.n_structures, threads, [&](int thread, int64_t s) {
      const int64_t first = in.ptr[s], last = in.ptr[s + 1];
      const Half* entry = list.buffers[list.place[s].thread].data() + list.place[s].offset;
      try {
        if (list.keep > 0) {
          pruners[thread].run(list, s, entry, row_ptr, to);
        } else {
          cursors[thread].assign(row_ptr + first, row_ptr + last);
          fill_structure(in, s, entry, list.half.data() + first, cursors[thread].data(), to);
        }
      } catch (const std::bad_alloc&) {
        fault = kNoMemory;
      }
    });
  } catch (const std::bad_alloc&) {
    fault = kNoMemory;
  }
  return -fault.load();
}

void atomsieve_neighbors_free(void* handle) { delete static_cast<atomsieve::List*>(handle); }

// Set `edges [S]` to the number of edges of each structure. Returns their sum, or minus a Fault as `build` does.
int64_t atomsieve_neighbors_count(int64_t n_structures, const int64_t* ptr, const double* positions, const double* cell,
                                  const uint8_t* pbc, double cutoff, int64_t max_per_atom, int threads, int64_t* edges,
                                  int64_t* bad) {
  using namespace atomsieve;
  *bad = -1;
  try {
    List list;
    list.in = {n_structures, ptr, positions, cell, pbc, cutoff};
    list.received.resize(ptr[n_structures]);
    return search(&list, {max_per_atom, INT64_MAX}, threads, false, edges, bad);
  } catch (const std::bad_alloc&) {
    return -kNoMemory;
  }
}
}
