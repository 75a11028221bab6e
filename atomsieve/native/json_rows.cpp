// What Python calls to gather rows of ASE's databases.
#include <algorithm>

#include "json_rows.h"

using namespace rows;

namespace {
struct Rows {
  Gathered out;
  Parser parser{out};
};
}  // namespace

extern "C" {

struct RowArrays {
  int64_t structures, atoms, columns;
  const int64_t *numbers, *counts;
  const double *positions, *cells;
  const uint8_t* pbc;
};

struct RowColumn {
  int64_t key_size, kind, axes, rows, reals, ints;
  const char *key, *text;
  const int64_t *shape, *place, *whole, *ends;
  const double* real;
};

void* rows_open() { return new Rows; }
void rows_close(void* rows) { delete static_cast<Rows*>(rows); }
void rows_clear(void* rows) { static_cast<Rows*>(rows)->out.clear(); }

// Append a row; its number of atoms, or -1 if Python must read it.
int64_t rows_add(void* rows, const char* data, int64_t size) { return static_cast<Rows*>(rows)->parser.add(data, size); }

// Append the geometry of a row that Python read.
void rows_put(void* rows, int64_t count, const int64_t* numbers, const double* positions, const double* cell,
              const uint8_t* pbc) {
  Gathered& out = static_cast<Rows*>(rows)->out;
  out.numbers.insert(out.numbers.end(), numbers, numbers + count);
  out.positions.insert(out.positions.end(), positions, positions + 3 * count);
  out.cells.insert(out.cells.end(), cell, cell + 9);
  out.pbc.insert(out.pbc.end(), pbc, pbc + 3);
  out.counts.push_back(count);
}

// The arrays so far; pointers are good until rows are added or cleared.
void rows_arrays(const void* rows, RowArrays* found) {
  const Gathered& out = static_cast<const Rows*>(rows)->out;
  *found = {int64_t(out.counts.size()), int64_t(out.numbers.size()), int64_t(out.columns.size()), out.numbers.data(),
            out.counts.data(),          out.positions.data(),        out.cells.data(),            out.pbc.data()};
}

void rows_column(const void* rows, int64_t k, RowColumn* found) {
  const Column& c = static_cast<const Rows*>(rows)->out.columns[size_t(k)];
  *found = {int64_t(c.key.size()), int64_t(c.kind), int64_t(c.shape.size()), int64_t(c.place.size()),
            int64_t(c.values.size()), int64_t(c.ints.size()), c.key.data(), c.text.data(),
            c.shape.data(), c.place.data(), c.ints.data(), c.ends.data(), c.values.data()};
}
}
