// What Python calls to parse pieces of files of extended XYZ.
#include "extxyz_parser.h"

using namespace extxyz;

extern "C" {

// Raised with every change of what Python sees of this library (TEXT_VERSION).
int32_t text_version() { return 6; }

// How a call ended, and the arrays of its frames. Pointers are good until the next call for the same file.
struct ExtxyzResult {
  int64_t status, consumed, line, previous_fits, foreign_begin, foreign_end, line_after_foreign;
  int64_t frames, atoms, bad, info, columns, heavy_hydrogen, more_words, units_size;
  const int64_t *ptr, *starts;
  const uint8_t *numbers, *pbc;
  const double *positions, *cells;
  const char* units;
};

struct ExtxyzInfo {
  int64_t key_size, rows, kinds, one_shape, numbers, texts;
  const char *key, *text;
  const int32_t *place, *shape;
  const uint8_t* kind;
  const int64_t *at, *ints, *text_end;
  const double* reals;
};

struct ExtxyzColumn {
  int64_t name_size, type, width, frames, values;
  const char *name, *text;
  const int32_t* place;
  const double* reals;
  const int64_t *ints, *text_end;
  const uint8_t* bools;
};

struct ExtxyzBad {
  int64_t place, start, at, line, detail_size;
  const char *reason, *detail;
};

void* extxyz_open() { return new Reader; }
void extxyz_close(void* reader) { delete static_cast<Reader*>(reader); }

// Parse data[at:size]; data[0] is byte `offset` of the file, data[at] begins line number `line`; `left` bytes follow in it, -1 if that is not known.
void extxyz_parse(void* reader, const char* data, int64_t size, int64_t at, int64_t final, int64_t offset, int64_t line,
                  int64_t left, int64_t stop, int64_t lost, int64_t previous_fits, ExtxyzResult* out) {
  Reader& state = *static_cast<Reader*>(reader);
  state.frames.clear(MOST_KEYS / 2);
  for (Property& property : state.properties) property.column = -1;
  Parser parser(state, state.frames, data, size, final != 0, offset, line, left);
  parser.previous_fits = previous_fits != 0;
  const char* p = data + at;
  int64_t now = line;
  out->status = parser.run(p, now, stop, lost != 0, lost == 2);
  out->consumed = p - data, out->line = now, out->previous_fits = parser.previous_fits;
  out->foreign_begin = parser.foreign_begin, out->foreign_end = parser.foreign_end;
  out->line_after_foreign = parser.line_after_foreign;
  const Frames& f = state.frames;
  out->frames = int64_t(f.count()), out->atoms = int64_t(f.numbers.size()), out->bad = int64_t(f.bad.size());
  out->info = int64_t(f.info.size()), out->columns = int64_t(f.atoms.size());
  out->heavy_hydrogen = f.heavy_hydrogen, out->more_words = f.more_words;
  out->units_size = int64_t(state.units.size()), out->units = state.units.data();
  out->ptr = f.ptr.data(), out->starts = f.starts.data(), out->numbers = f.numbers.data(), out->pbc = f.pbc.data();
  out->positions = f.positions.data(), out->cells = f.cells.data();
}

int32_t extxyz_fits(const char* data, int64_t size) {
  Line line;
  line.begin = data, line.end = line.next = data + size;
  return may_precede(line);
}

void extxyz_info(const void* reader, int64_t k, ExtxyzInfo* out) {
  const InfoColumn& c = static_cast<const Reader*>(reader)->frames.info[size_t(k)];
  *out = {int64_t(c.key.size()),   int64_t(c.place.size()), int64_t(c.kinds), c.one_shape ? 1 : 0,
          int64_t(c.reals.size()), int64_t(c.text_end.size()), c.key.data(),  c.texts.data(),
          c.place.data(),          c.shape.data(),          c.kind.data(),    c.at.data(),
          c.ints.data(),           c.text_end.data(),       c.reals.data()};
}

void extxyz_column(const void* reader, int64_t k, ExtxyzColumn* out) {
  const AtomColumn& c = static_cast<const Reader*>(reader)->frames.atoms[size_t(k)];
  const size_t values = c.reals.size() + c.ints.size() + c.bools.size() + c.text_end.size();
  *out = {int64_t(c.name.size()), int64_t(c.type), int64_t(c.width), int64_t(c.place.size()),
          int64_t(values),        c.name.data(),   c.texts.data(),   c.place.data(),
          c.reals.data(),         c.ints.data(),   c.text_end.data(), c.bools.data()};
}

void extxyz_bad(const void* reader, int64_t k, ExtxyzBad* out) {
  const Bad& b = static_cast<const Reader*>(reader)->frames.bad[size_t(k)];
  *out = {b.place, b.start, b.at, b.line, int64_t(b.detail.size()), b.reason, b.detail.data()};
}
}
