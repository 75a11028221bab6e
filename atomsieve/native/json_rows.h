// Rows of ASE's databases (JSON objects) into flat arrays. What is not usual is left to Python: a value as its bytes, or
// the whole row. A row is taken only if it is valid JSON of ASCII, so that what Python would refuse is never taken.
#pragma once
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "text_numbers.h"

namespace rows {

using Word = std::string_view;

enum Kind : int64_t { reals = 0, wholes = 1, truths = 2, texts = 3, raw = 4, arrays = 5, atom_reals = 6, atom_wholes = 7 };

constexpr size_t MOST_KEYS = 256;
constexpr int DEEPEST = 64;

// Values of one key and kind, of the structures `place`.
struct Column {
  std::string key;
  Kind kind;
  std::vector<int64_t> shape;  // of one array; of `atom_*` the numbers per atom
  std::vector<int64_t> place, ints, ends;
  std::vector<double> values;
  std::string text;
};

// One value of the row that is being read; `begin`, `end` are places in the numbers or in the text of the row.
struct Entry {
  Word key, text;
  Kind kind;
  double real = 0;
  int64_t whole = 0;
  size_t begin = 0, end = 0;
  std::array<int64_t, 3> shape{};
  int axes = 0;
  bool inner = false;  // of key_value_pairs or data: the row's own key of that name goes first
};

struct Gathered {
  std::vector<int64_t> numbers, counts;
  std::vector<double> positions, cells;
  std::vector<uint8_t> pbc;
  std::vector<Column> columns;
  size_t next = 0;  // where the next column is looked for first

  // Forget all rows; the memory is kept, for the next ones are like these.
  void clear() {
    numbers.clear(), counts.clear(), positions.clear(), cells.clear(), pbc.clear();
    if (columns.size() > MOST_KEYS) columns.clear();
    for (Column& c : columns) c.place.clear(), c.ints.clear(), c.ends.clear(), c.values.clear(), c.text.clear();
    next = 0;
  }

  Column& find(Word key, Kind kind, const int64_t* shape, int axes) {
    for (size_t k = 0; k < columns.size(); ++k, ++next) {
      if (next >= columns.size()) next = 0;
      Column& c = columns[next];
      if (c.kind == kind && c.key == key && int(c.shape.size()) == axes && std::equal(shape, shape + axes, c.shape.begin()))
        return columns[next++];
    }
    columns.emplace_back();
    columns.back().key = key, columns.back().kind = kind, columns.back().shape.assign(shape, shape + axes);
    next = columns.size();
    return columns.back();
  }
};

inline bool is_one_of(Word word, const Word* first, const Word* last) {
  for (; first != last; ++first)
    if (*first == word) return true;
  return false;
}

inline bool is_label_of_atoms(Word key) {
  static constexpr Word names[] = {"magmoms", "charges", "energies", "stresses"};
  for (size_t k = 0; k + 5 <= key.size(); ++k)
    if (text::equals_lower(key.substr(k, 5), "force")) return true;
  return is_one_of(key, std::begin(names), std::end(names));
}

// Numbers per atom of an array of ASE, 0: one or several, -1: no such array.
inline int numbers_per_atom(Word key) {
  static constexpr Word one[] = {"tags", "masses", "initial_charges", "charges", "energies"};
  static constexpr Word some[] = {"initial_magmoms", "magmoms", "stresses"};
  if (key == "forces" || key == "momenta") return 3;
  if (is_one_of(key, std::begin(one), std::end(one))) return 1;
  return is_one_of(key, std::begin(some), std::end(some)) ? 0 : -1;
}

inline bool is_not_stated(Word key) {
  static constexpr Word names[] = {"ctime", "mtime", "user", "calculator_parameters", "constraints", "natoms", "id"};
  return is_one_of(key, std::begin(names), std::end(names));
}

inline bool is_real_type(Word name) {
  static constexpr Word names[] = {"float64", "int64", "float32", "int32",  "bool",   "float16",
                                   "float8",  "int16", "int8",    "uint64", "uint32", "uint16", "uint8"};
  return is_one_of(name, std::begin(names), std::end(names));
}

class Parser {
 public:
  explicit Parser(Gathered& out) : out(out) {}

  // Append the row data[:size]; its number of atoms, or -1: nothing was appended, and it is for Python.
  int64_t add(const char* data, int64_t size) {
    p = data, end = data + size;
    entries.clear(), keys.clear(), values.clear(), ints.clear();
    positions = cell = numbers = {0, 0};
    has_numbers = has_positions = has_cell = false;
    pbc = {0, 0, 0};
    space();
    if (!object([this](Word key) { return take(key); })) return -1;
    space();
    if (p != end || !has_numbers || !has_positions) return -1;
    const size_t count = numbers[1] - numbers[0];
    if (positions[1] - positions[0] != 3 * count || (has_cell && cell[1] - cell[0] != 9)) return -1;
    for (Entry& e : entries) {
      if (e.kind < atom_reals) continue;
      const size_t held = e.end - e.begin, width = count ? held / count : 0;
      const int wanted = numbers_per_atom(e.key);
      if (!count || held != count * width || (wanted && size_t(wanted) != width)) return -1;
      e.shape[0] = int64_t(width), e.axes = 1;
    }
    commit(count);
    return int64_t(count);
  }

 private:
  using Range = std::array<size_t, 2>;
  Gathered& out;
  const char *p = nullptr, *end = nullptr;
  std::vector<Entry> entries;
  std::vector<Word> keys;
  std::vector<double> values;
  std::vector<int64_t> ints;
  Range numbers{}, positions{}, cell{};
  bool has_numbers = false, has_positions = false, has_cell = false;
  std::array<uint8_t, 3> pbc{};

  void space() {
    while (p != end && (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) ++p;
  }
  bool take_char(char c) {
    space();
    if (p == end || *p != c) return false;
    ++p;
    return true;
  }
  bool take_word(Word word) {
    if (size_t(end - p) < word.size() || Word(p, word.size()) != word) return false;
    p += word.size();
    return ends_here();
  }
  bool ends_here() const {
    return p == end || *p == ',' || *p == ']' || *p == '}' || *p == ' ' || *p == '\n' || *p == '\t' || *p == '\r';
  }

  // The characters between quotes; `escaped` if a backslash is among them. Not \u, whose surrogates Python looks at.
  bool quoted(Word& word, bool& escaped) {
    if (!take_char('"')) return false;
    const char* const begin = p;
    escaped = false;
    for (; p != end; ++p) {
      const unsigned char c = static_cast<unsigned char>(*p);
      if (c == '"') {
        word = Word(begin, size_t(p++ - begin));
        return true;
      }
      if (c < 0x20 || c >= 0x80) return false;
      if (c == '\\') {
        if (++p == end || Word("\"\\/bfnrt").find(*p) == Word::npos) return false;
        escaped = true;
      }
    }
    return false;
  }

  template <class Take>
  bool object(Take&& take_value) {
    if (!take_char('{')) return false;
    if (take_char('}')) return true;
    do {
      Word key;
      bool escaped;
      if (!quoted(key, escaped) || escaped || !take_char(':')) return false;
      space();
      if (!take_value(key)) return false;
    } while (take_char(','));
    return take_char('}');
  }

  // A number of JSON; `is_whole` if it has neither a point nor an exponent. False also where Python must look at it.
  bool number(double& real, int64_t& whole, bool& is_whole) {
    static constexpr double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                        1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const char* const begin = p;
    const bool negative = p != end && *p == '-';
    p += negative;
    const char* const first = p;
    uint64_t mantissa = 0;
    for (; p != end && text::is_digit(*p); ++p) mantissa = 10 * mantissa + uint64_t(*p - '0');
    int64_t digits = p - first, scale = 0;
    if (digits == 0 || (digits > 1 && *first == '0')) return false;
    is_whole = true;
    if (p != end && *p == '.') {
      const char* const point = ++p;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
      while (end - p >= 8 && text::read_eight_digits(p, mantissa)) p += 8;
#endif
      for (; p != end && text::is_digit(*p); ++p) mantissa = 10 * mantissa + uint64_t(*p - '0');
      if (p == point) return false;
      digits += p - point, scale = point - p, is_whole = false;
    }
    if (p != end && (*p == 'e' || *p == 'E')) {
      bool minus = false;
      if (++p != end && (*p == '-' || *p == '+')) minus = *p++ == '-';
      const char* const power = p;
      int64_t exponent = 0;
      for (; p != end && text::is_digit(*p); ++p) exponent = exponent < 100000 ? 10 * exponent + (*p - '0') : exponent;
      if (p == power) return false;
      scale += minus ? -exponent : exponent, is_whole = false;
    }
    if (!ends_here()) return false;
    if (is_whole) {
      if (digits > 18) return false;
      whole = negative ? -int64_t(mantissa) : int64_t(mantissa), real = double(whole);
      return true;
    }
    if (digits <= 19) {  // the mantissa did not overflow
#if FLT_EVAL_METHOD == 0
      if (mantissa <= (uint64_t(1) << 53) && scale >= -22 && scale <= 22) {  // one exact operation (Clinger 1990)
        const double value = double(mantissa);
        real = scale < 0 ? value / powers[-scale] : value * powers[scale];
        if (negative) real = -real;
        return true;
      }
#endif
      if (text::divide_exactly(mantissa, scale, real)) {
        if (negative) real = -real;
        return true;
      }
    }
    const auto [stop, error] = std::from_chars(begin, p, real);
    return error == std::errc() && stop == p;
  }

  // Numbers of an array, nested or not, behind those in `values` or, all of them whole, in `ints`.
  bool flat(bool want_whole, int depth = 0) {
    if (depth > 8 || !take_char('[')) return false;
    if (take_char(']')) return true;
    do {
      space();
      if (p != end && *p == '[') {
        if (!flat(want_whole, depth + 1)) return false;
        continue;
      }
      double real;
      int64_t whole = 0;
      bool is_whole;
      if (!number(real, whole, is_whole) || (want_whole && !is_whole)) return false;
      want_whole ? ints.push_back(whole) : values.push_back(real);
    } while (take_char(','));
    return take_char(']');
  }

  // The head of {"__ndarray__": [shape, type, flat]}, up to the flat numbers.
  bool array_head(std::array<int64_t, 3>& shape, int& axes, Word& type) {
    Word key;
    bool escaped;
    if (!take_char('{') || !quoted(key, escaped) || key != "__ndarray__" || !take_char(':') || !take_char('[')) return false;
    if (!take_char('[')) return false;
    axes = 0;
    if (!take_char(']')) {
      do {
        double real;
        bool is_whole;
        space();
        if (axes == 3 || !number(real, shape[size_t(axes++)], is_whole) || !is_whole) return false;
      } while (take_char(','));
      if (!take_char(']')) return false;
    }
    return take_char(',') && quoted(type, escaped) && !escaped && is_real_type(type) && take_char(',');
  }
  bool array_tail() { return take_char(']') && take_char('}'); }

  bool numbers_of(bool want_whole, Range& range) {
    range[0] = want_whole ? ints.size() : values.size();
    space();
    if (p != end && *p == '{') {
      std::array<int64_t, 3> shape{};
      int axes;
      Word type;
      if (!array_head(shape, axes, type) || !flat(want_whole) || !array_tail()) return false;
    } else if (!flat(want_whole)) {
      return false;
    }
    range[1] = want_whole ? ints.size() : values.size();
    return true;
  }

  bool truths_of() {
    std::array<int64_t, 3> shape{};
    int axes;
    Word type;
    const bool packed = p != end && *p == '{';
    if (packed && !array_head(shape, axes, type)) return false;
    if (!take_char('[')) return false;
    for (size_t k = 0; k < 3; ++k) {
      if (k && !take_char(',')) return false;
      space();
      if (p == end) return false;
      double real = 0;
      int64_t whole = 0;
      bool is_whole = true;
      if (*p == 't') {
        if (!take_word("true")) return false;
        pbc[k] = 1;
      } else if (*p == 'f') {
        if (!take_word("false")) return false;
        pbc[k] = 0;
      } else {
        if (!number(real, whole, is_whole) || !is_whole) return false;
        pbc[k] = whole != 0;
      }
    }
    return take_char(']') && (!packed || array_tail());
  }

  bool skip(int depth = 0) {
    if (depth > DEEPEST || p == end) return false;
    Word word;
    bool escaped, is_whole;
    double real;
    int64_t whole;
    switch (*p) {
      case '{':
        return object([this, depth](Word) { return skip(depth + 1); });
      case '[':
        ++p;
        if (take_char(']')) return true;
        do {
          space();
          if (!skip(depth + 1)) return false;
        } while (take_char(','));
        return take_char(']');
      case '"':
        return quoted(word, escaped);
      case 't':
        return take_word("true");
      case 'f':
        return take_word("false");
      case 'n':
        return take_word("null");
      default:
        return number(real, whole, is_whole);
    }
  }

  // An array of float64 whose numbers are as many as its shape says.
  bool fitting_array(Entry& e) {
    Word type;
    const size_t before = values.size();
    if (!array_head(e.shape, e.axes, type) || type != "float64" || e.axes == 0 || !flat(false) || !array_tail()) return false;
    size_t wanted = 1;
    for (int k = 0; k < e.axes; ++k) {
      if (e.shape[size_t(k)] < 0 || e.shape[size_t(k)] > 1000000) return false;
      wanted *= size_t(e.shape[size_t(k)]);
    }
    return wanted == values.size() - before;
  }

  // A value that has no place of its own.
  bool plain(Word key, bool inner) {
    if (p == end || entries.size() > 2 * MOST_KEYS) return false;
    Entry e;
    e.key = key, e.inner = inner, e.kind = raw;
    const char* const begin = p;
    bool escaped = false, is_whole = false;
    switch (*p) {
      case '"':
        if (!quoted(e.text, escaped)) return false;
        if (!escaped) e.kind = texts;
        break;
      case 't':
      case 'f':
        e.kind = truths, e.whole = *p == 't';
        if (!take_word(*p == 't' ? "true" : "false")) return false;
        break;
      case 'n':
        if (!take_word("null")) return false;
        break;
      case '[':
        if (!skip()) return false;
        break;
      case '{': {
        e.begin = values.size();
        if (fitting_array(e)) {
          e.kind = is_label_of_atoms(key) ? raw : arrays;
        } else {
          p = begin, e.axes = 0;
          if (!skip() || Word(begin, size_t(p - begin)).find("__ndarray__") != Word::npos) return false;
        }
        e.end = values.size();
        break;
      }
      default:
        if (!number(e.real, e.whole, is_whole)) return false;
        e.kind = is_whole ? wholes : reals;
    }
    if (e.kind == raw) e.axes = 0, e.text = Word(begin, size_t(p - begin));
    entries.push_back(e);
    return true;
  }

  // The value of a key of the row itself.
  bool take(Word key) {
    for (const Word& other : keys)
      if (other == key) return false;
    if (keys.size() >= MOST_KEYS || p == end) return false;
    keys.push_back(key);
    if (key == "numbers") return has_numbers = numbers_of(true, numbers);
    if (key == "positions") return has_positions = numbers_of(false, positions);
    if (is_not_stated(key)) return skip();
    if (*p == 'n') return take_word("null");
    const bool many = *p == '{' || *p == '[';
    const bool inner = key == "key_value_pairs" || key == "data";
    if (key == "cell" || key == "pbc" || inner) {
      if (!many) return false;
      if (key == "cell") return has_cell = numbers_of(false, cell);
      if (key == "pbc") return truths_of();
      return *p == '{' && object([this](Word name) {
               if (name == "__ndarray__") return false;
               for (const Entry& e : entries)
                 if (e.inner && e.key == name) return false;
               return plain(name, true);
             });
    }
    if (many && numbers_per_atom(key) >= 0) {
      Entry e;
      Range range;
      const bool want_whole = key == "tags";
      if (!numbers_of(want_whole, range)) return false;
      e.key = key, e.kind = want_whole ? atom_wholes : atom_reals, e.begin = range[0], e.end = range[1];
      entries.push_back(e);
      return true;
    }
    return plain(key, false);
  }

  void commit(size_t count) {
    const int64_t place = int64_t(out.counts.size());
    for (const Entry& e : entries) {
      if (e.inner && is_one_of(e.key, keys.data(), keys.data() + keys.size())) continue;
      Column& c = out.find(e.key, e.kind, e.shape.data(), e.axes);
      c.place.push_back(place);
      switch (e.kind) {
        case reals:
          c.values.push_back(e.real);
          break;
        case wholes:
        case truths:
          c.ints.push_back(e.whole);
          break;
        case texts:
        case raw:
          c.text.append(e.text);
          c.ends.push_back(int64_t(c.text.size()));
          break;
        case atom_wholes:
          c.ints.insert(c.ints.end(), ints.begin() + int64_t(e.begin), ints.begin() + int64_t(e.end));
          break;
        default:
          c.values.insert(c.values.end(), values.begin() + int64_t(e.begin), values.begin() + int64_t(e.end));
      }
    }
    static constexpr double none[9] = {};
    const double* const vectors = has_cell ? values.data() + cell[0] : none;
    out.numbers.insert(out.numbers.end(), ints.begin() + int64_t(numbers[0]), ints.begin() + int64_t(numbers[1]));
    out.positions.insert(out.positions.end(), values.begin() + int64_t(positions[0]),
                         values.begin() + int64_t(positions[1]));
    out.cells.insert(out.cells.end(), vectors, vectors + 9);
    out.pbc.insert(out.pbc.end(), pbc.begin(), pbc.end());
    out.counts.push_back(int64_t(count));
  }
};

}  // namespace rows
