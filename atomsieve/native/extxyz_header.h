// The second line of a frame of extended XYZ: words to keys, and values to numbers, truth values, texts and matrices.
//
// The rules are those of ase.io.extxyz (key_val_str_to_dict), with three additions: nested brackets are matrices, the
// exponent of a real may be written with D, and a value that is an empty pair of quotes ends where it ends.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text_numbers.h"

namespace extxyz {

using text::is_space;
using text::Whole;

enum Kind : uint8_t { INTS = 1, REALS = 2, BOOLS = 4, TEXT = 8, JSON = 16 };

struct Value {
  Kind kind = TEXT;
  int rank = 0, rows = 1, columns = 1;  // rank 0: one value; 1: `rows` values; 2: a matrix
  size_t first = 0, count = 1;          // place in `Header::ints` and `Header::reals`
  std::string_view words;               // as written, without quotes
};

struct Entry {
  std::string_view key;
  Value value;
};

enum class Bytes { plain, utf8, odd };

// Which characters a line holds: odd ones are spaces, digits or control characters beyond ASCII, or broken UTF-8.
inline Bytes classify(std::string_view line) {
  unsigned char all = 0;
  bool control = false;
  for (const unsigned char c : line) {
    all |= c;
    control |= (c < 32 && !is_space(char(c))) || c == 127;
  }
  if (control) return Bytes::odd;
  if (all < 128) return Bytes::plain;
  for (size_t k = 0; k < line.size(); ++k) {
    const unsigned char c = static_cast<unsigned char>(line[k]);
    if (c < 128) continue;
    // Letters and signs that are no space and no digit to Python; everything else is left to it.
    const int more = (c & 0xE0) == 0xC0 ? 1 : (c & 0xF0) == 0xE0 ? 2 : 0;
    unsigned code = more == 1 ? c & 0x1Fu : c & 0x0Fu;
    if (more == 0 || k + size_t(more) >= line.size()) return Bytes::odd;
    for (int m = 0; m < more; ++m) {
      const unsigned char next = static_cast<unsigned char>(line[++k]);
      if ((next & 0xC0) != 0x80) return Bytes::odd;
      code = code << 6 | (next & 0x3Fu);
    }
    const auto within = [code](unsigned low, unsigned high) { return code >= low && code <= high; };
    const bool letter = code == 0xB0 || code == 0xB5 || code == 0xB7 || within(0xC0, 0x24F) || within(0x391, 0x3C9) ||
                        within(0x410, 0x44F) || within(0x2010, 0x2027) || within(0x2030, 0x205E) ||
                        within(0x2070, 0x209F) || within(0x2100, 0x22FF) || within(0x3041, 0x30FF) ||
                        within(0x4E00, 0x9FFF) || within(0xAC00, 0xD7A3);
    if (!letter) return Bytes::odd;
  }
  return Bytes::utf8;
}

inline bool parse_bool(std::string_view word, bool& out) {
  if (word == "T" || word == "True" || word == "true" || word == "TRUE") return out = true, true;
  if (word == "F" || word == "False" || word == "false" || word == "FALSE") return out = false, true;
  return false;
}

class Header {
 public:
  std::vector<Entry> entries;
  std::vector<int64_t> ints;
  std::vector<double> reals;
  bool open_quote = false;  // a quote or bracket that nothing closes

  // False where a line begins with '='.
  bool parse(std::string_view line) {
    entries.clear(), ints.clear(), reals.clear(), parts_.clear();
    open_quote = false;
    chars_.clear();
    chars_.reserve(line.size() + 1);  // never grows below, so views into it stay good
    if (!split(line)) return false;
    for (const Part& part : parts_) {
      entries.emplace_back();
      Entry& entry = entries.back();
      entry.key = view(part.key, part.key_end);
      if (part.matrix) {
        entry.value = part.value;
      } else if (part.has_value) {
        entry.value = interpret(entry.key, view(part.text, part.end), part.quoted);
      } else {
        entry.value = number(BOOLS, 1, 1.0);
        entry.value.words = "T";
      }
    }
    return true;
  }

 private:
  struct Part {
    size_t key = 0, key_end = 0, text = 0, end = 0;
    bool has_value = false, quoted = false, matrix = false;
    Value value;
  };
  std::string chars_;  // the line without quotes and escapes
  std::vector<Part> parts_;

  std::string_view view(size_t begin, size_t end) const { return std::string_view(chars_).substr(begin, end - begin); }

  static bool is_special(char c) {
    static const std::array<bool, 256> table = [] {
      std::array<bool, 256> out{};
      for (const char special : std::string_view("\\\"'{}[]= \t\n\v\f\r")) out[static_cast<unsigned char>(special)] = true;
      return out;
    }();
    return table[static_cast<unsigned char>(c)];
  }

  bool split(std::string_view line) {
    while (!line.empty() && is_space(line.front())) line.remove_prefix(1);
    while (!line.empty() && is_space(line.back())) line.remove_suffix(1);
    Part now;
    size_t piece = 0;          // where the key, or the part of the value behind the last '=', begins
    bool closed_empty = false;  // that part is an empty pair of quotes
    char closing = 0;
    const char* const end = line.data() + line.size();
    const auto finish = [&] {
      (now.has_value ? now.end : now.key_end) = chars_.size();
      parts_.push_back(now);
      now = Part();
      now.key = piece = chars_.size();
      closed_empty = false;
    };
    for (const char* p = line.data(); p != end; ++p) {
      const char* const run = p;
      while (p != end && !is_special(*p)) ++p;  // most characters stand for themselves
      chars_.append(run, size_t(p - run));
      if (p == end) break;
      const char c = *p;
      if (c == '\\') {
        if (p + 1 != end) chars_.push_back(*++p);
      } else if (closing) {
        if (c == closing) closing = 0, closed_empty = now.has_value && chars_.size() == piece;
        else chars_.push_back(c);
      } else if (c == '"' || c == '\'') {
        closing = c;
        now.quoted |= now.has_value;
      } else if (c == '{' || c == '[') {
        if (c == '[' && now.has_value && chars_.size() == now.text && read_matrix(p, end, now)) {
          finish();
          continue;
        }
        closing = c == '{' ? '}' : ']';
      } else if (is_space(c)) {
        if (chars_.size() != piece || closed_empty) finish();
      } else if (c == '=') {
        if (!now.has_value && chars_.size() == now.key) {  // "key = value": the '=' belongs to the key before it
          if (parts_.empty()) return false;
          now = parts_.back();
          parts_.pop_back();
          if (now.matrix) return false;
        }
        if (now.has_value) {
          chars_.push_back('=');
        } else {
          now.key_end = now.text = chars_.size();
          now.has_value = true;
        }
        piece = chars_.size();
        closed_empty = false;
      } else {
        chars_.push_back(c);
      }
    }
    open_quote = closing != 0;
    if (now.has_value || chars_.size() != piece) finish();
    return true;
  }

  // A matrix "[[1, 2], [3, 4]]" of numbers at *p; moves p to its last bracket. False, and p as it was, for all else.
  bool read_matrix(const char*& p, const char* end, Part& part) {
    const char* q = p + 1;
    const auto skip = [&] {
      while (q != end && (is_space(*q) || *q == ',')) ++q;
    };
    const size_t first = reals.size();
    int rows = 0, columns = -1;
    bool whole = true;
    const auto fail = [&] {
      reals.resize(first), ints.resize(first);
      return false;
    };
    for (skip(); q != end && *q == '['; skip(), ++rows) {
      int count = 0;
      for (++q, skip(); q != end && *q != ']'; skip(), ++count) {
        const char* const start = q;
        while (q != end && !is_space(*q) && *q != ',' && *q != ']' && *q != '[') ++q;
        const std::string_view word(start, size_t(q - start));
        int64_t i = 0;
        double r = 0;
        if (text::parse_int(word, i) == Whole::yes) r = double(i);
        else if (text::parse_double(word, r, true)) whole = false;
        else return fail();
        ints.push_back(i), reals.push_back(r);
      }
      if (q == end || (columns >= 0 && count != columns)) return fail();
      columns = count;
      ++q;
    }
    if (q == end || *q != ']' || rows == 0 || columns == 0) return fail();
    if (q + 1 != end && !is_space(q[1])) return fail();
    part.matrix = true;
    part.value.kind = whole ? INTS : REALS;
    part.value.rank = 2, part.value.rows = rows, part.value.columns = columns;
    part.value.first = first, part.value.count = size_t(rows) * size_t(columns);
    part.value.words = std::string_view(p, size_t(q + 1 - p));
    p = q;
    return true;
  }

  Value number(Kind kind, int64_t i, double r) {
    Value value;
    value.kind = kind, value.first = reals.size();
    ints.push_back(i), reals.push_back(r);
    return value;
  }

  // Words apart by spaces or commas: all integers, else all reals, else all truth values, else the text itself.
  Value interpret(std::string_view key, std::string_view words, bool quoted) {
    Value value;
    value.words = words;
    value.first = reals.size();
    if (text::equals_lower(key, "uid") || (words.empty() && quoted)) return value;
    int count = 0;
    unsigned fits = INTS | REALS | BOOLS;
    for (size_t at = 0; fits;) {
      while (at < words.size() && (is_space(words[at]) || words[at] == ',')) ++at;
      if (at == words.size()) break;
      size_t stop = at;
      while (stop < words.size() && !is_space(words[stop]) && words[stop] != ',') ++stop;
      const std::string_view word = words.substr(at, stop - at);
      at = stop;
      ++count;
      int64_t i = 0;
      double r = 0;
      bool truth = false;
      if (fits & (INTS | REALS)) {
        const Whole whole = fits & INTS ? text::parse_int(word, i) : Whole::no;
        if (whole == Whole::yes) {
          r = i == 0 && word[0] == '-' ? -0.0 : double(i);  // "-0" among reals
        } else {
          fits &= ~unsigned(INTS);
          // A D is an exponent only beside a decimal point: "2d10" may be any name.
          if (!text::parse_double(word, r, word.find('.') != std::string_view::npos)) fits &= ~unsigned(REALS);
        }
      }
      if (fits & BOOLS) {
        if (!parse_bool(word, truth)) fits &= ~unsigned(BOOLS);
        else if (!(fits & REALS)) r = double(i = truth);
      }
      ints.push_back(i), reals.push_back(r);
    }
    const bool none = count == 0;
    if (fits & INTS) {
      value.kind = INTS;
      for (size_t k = value.first; k < reals.size(); ++k) reals[k] = double(ints[k]);
    }
    if (value.kind == TEXT && fits & REALS) value.kind = REALS;
    else if (value.kind == TEXT && fits & BOOLS) value.kind = BOOLS;
    if (fits == 0) {
      ints.resize(value.first), reals.resize(value.first);
      if (words.substr(0, 6) == "_JSON ") value.kind = JSON;
      return value;
    }
    value.rank = count == 1 ? 0 : 1;
    value.rows = none ? 0 : count;
    value.count = size_t(count);
    return value;
  }
};

}  // namespace extxyz
