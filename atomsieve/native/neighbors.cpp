// Batched neighbour list: every pair (i <= j) of a structure is looked at once and both directions are written, so the
// list is symmetric by construction, whatever the rounding. Two phases: `build` finds the half list of each structure
// (threads over structures, each with its own buffer), `fill` writes the sorted edges to their final places. What is
// written does not depend on the number of threads.
//
// Order: receiver, then sender, then shift (lexicographic). Pairs come in the order (i, j), i <= j, shifts ascending:
// then each receiver meets its senders in ascending order and one cursor per atom sorts the edges.
#ifdef _OPENMP
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
#endif

#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "finder.h"

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

struct Limits {
  int64_t per_atom;
  int64_t total;
};

template <class Real>
struct Edges {  // where to write; `vec` is null where it is not wanted
  int64_t* sender;
  int32_t* shift;
  Real* vec;
};

// Write the edges of one structure. `cursor[i]` is the place of the next edge of atom i and ends behind its last.
template <class Real>
void fill_structure(const Input& in, int64_t s, const Half* entry, const int32_t* half, int64_t* cursor,
                    const Edges<Real>& to) {
  const int64_t first = in.ptr[s];
  const int32_t n = static_cast<int32_t>(in.ptr[s + 1] - first);
  const double* p = in.positions + 3 * first;
  double cell[9];
  for (int k = 0; k < 9; ++k) cell[k] = in.pbc[3 * s + k / 3] ? in.cell[9 * s + k] : 0.0;
  for (int32_t i = 0; i < n; ++i) {
    const Half* const row_end = entry + half[i];
    while (entry < row_end) {
      const int32_t j = entry->j;
      const Half* end = entry + 1;
      while (end < row_end && end->j == j) ++end;
      const int64_t m = end - entry;
      int64_t reverse = cursor[j] + m;  // an atom's own images: the negative shifts come first
      cursor[j] += m;
      int64_t direct = cursor[i];
      cursor[i] += m;
      const double d[3] = {p[3 * j] - p[3 * i], p[3 * j + 1] - p[3 * i + 1], p[3 * j + 2] - p[3 * i + 2]};
      for (; entry < end; ++entry, ++direct) {
        --reverse;
        to.sender[direct] = first + j;
        to.sender[reverse] = first + i;
        for (int c = 0; c < 3; ++c) {
          to.shift[3 * direct + c] = entry->s[c];
          to.shift[3 * reverse + c] = -entry->s[c];
        }
        if (!to.vec) continue;
        const double s0 = entry->s[0], s1 = entry->s[1], s2 = entry->s[2];
        for (int c = 0; c < 3; ++c) {
          const Real vec = static_cast<Real>(d[c] + (s0 * cell[c] + s1 * cell[3 + c] + s2 * cell[6 + c]));
          to.vec[3 * direct + c] = vec;
          to.vec[3 * reverse + c] = -vec;
        }
      }
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
  std::vector<HalfBuffer> buffers;
  int64_t keep = 0;  // neighbours kept per atom, 0: all

  void reserve(int threads) {
    half.resize(in.ptr[in.n_structures]);
    received.resize(in.ptr[in.n_structures]);
    place.resize(in.n_structures);
    buffers.resize(threads);
  }
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
      HalfBuffer* out = &list->buffers[thread];
      list->place[s] = {thread, static_cast<int64_t>(out->size)};
      faults[s] = finders[thread].find(in.positions + 3 * first, static_cast<int32_t>(n), in.cell + 9 * s,
                                       in.pbc + 3 * s, limits.per_atom, keep, out, list->half.data() + first,
                                       list->received.data() + first);
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

  template <class Real>
  void run(const List& list, int64_t s, const Half* entry, const int64_t* row_ptr, const Edges<Real>& to) {
    const int64_t first = list.in.ptr[s], n = list.in.ptr[s + 1] - first;
    const int32_t* received = list.received.data() + first;
    cursor.resize(n);
    int64_t all = 0;
    for (int64_t i = 0; i < n; all += received[i++]) cursor[i] = all;
    sender.resize(all);
    shift.resize(3 * all);
    vec.resize(3 * all);
    fill_structure<double>(list.in, s, entry, list.half.data() + first, cursor.data(), {sender.data(), shift.data(), vec.data()});
    for (int64_t i = 0; i < n; ++i) {
      const int64_t start = cursor[i] - received[i], out = row_ptr[first + i], kept = row_ptr[first + i + 1] - out;
      choose(start, received[i], kept);
      for (int64_t k = 0; k < kept; ++k) {
        const int64_t e = start + order[k];
        to.sender[out + k] = sender[e];
        for (int c = 0; c < 3; ++c) {
          to.shift[3 * (out + k) + c] = shift[3 * e + c];
          if (to.vec) to.vec[3 * (out + k) + c] = static_cast<Real>(vec[3 * e + c]);
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

template <class Real>
int fill(const List& list, int threads, const int64_t* row_ptr, int64_t* receiver, const Edges<Real>& to) {
  const Input& in = list.in;
  std::atomic<int> fault{kFine};
  std::vector<Pruner> pruners(threads);
  std::vector<std::vector<int64_t>> cursors(threads);
  over_structures(in.n_structures, threads, [&](int thread, int64_t s) {
    const int64_t first = in.ptr[s], last = in.ptr[s + 1];
    const Half* entry = list.buffers[list.place[s].thread].data + list.place[s].offset;
    try {
      if (list.keep > 0) {
        pruners[thread].run(list, s, entry, row_ptr, to);
      } else {
        cursors[thread].assign(row_ptr + first, row_ptr + last);
        fill_structure(in, s, entry, list.half.data() + first, cursors[thread].data(), to);
      }
      for (int64_t i = first; i < last; ++i) std::fill(receiver + row_ptr[i], receiver + row_ptr[i + 1], i);
    } catch (const std::bad_alloc&) {
      fault = kNoMemory;
    }
  });
  return fault;
}

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
    list->reserve(threads);
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
  const int64_t n = list.in.ptr[list.in.n_structures];
  row_ptr[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t count = list.received[i];
    row_ptr[i + 1] = row_ptr[i] + (list.keep > 0 ? std::min(count, list.keep) : count);
  }
  try {
    if (vec32) return -fill<float>(list, threads, row_ptr, receiver, {sender, shift, vec32});
    return -fill<double>(list, threads, row_ptr, receiver, {sender, shift, vec64});
  } catch (const std::bad_alloc&) {
    return -kNoMemory;
  }
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
    list.reserve(threads);
    return search(&list, {max_per_atom, INT64_MAX}, threads, false, edges, bad);
  } catch (const std::bad_alloc&) {
    return -kNoMemory;
  }
}
}
