// What Python calls to read the numbers at the beginning of each of many lines.
#include "text_numbers.h"

extern "C" {

// The first `columns` numbers of each of `lines` lines, as Python's float() reads their words; what follows in a line is not
// looked at. 1, or 0 where a line has fewer words or one that is no number: Python says then what is wrong.
int32_t number_lines(const char* data, int64_t size, int64_t lines, int64_t columns, double* out) {
  const char *p = data, *const end = data + size;
  for (int64_t k = 0; k < lines; ++k) {
    for (int64_t c = 0; c < columns; ++c, ++out) {
      while (p != end && *p != '\n' && text::is_space(*p)) ++p;
      const char* const begin = p;
      if (text::read_plain_double(p, end, *out)) continue;
      while (p != end && !text::is_space(*p)) ++p;
      if (p == begin || !text::parse_double(std::string_view(begin, size_t(p - begin)), *out, false)) return 0;
    }
    while (p != end && *p != '\n') ++p;
    if (p != end) ++p;
  }
  return 1;
}
}
