// Lines and words of extended XYZ, and what a line looks like.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "extxyz_header.h"

namespace extxyz {

struct Line {
  const char *begin = nullptr, *end = nullptr, *next = nullptr;
  bool whole = false;
  std::string_view view() const { return {begin, size_t(end - begin)}; }
};

inline std::string quote(std::string_view word) {
  std::string out = "'";
  for (const char c : word.substr(0, 40)) out.push_back(c >= 32 && c < 127 ? c : '?');
  return out + (word.size() > 40 ? "...'" : "'");
}

// Takes the next word of a line, empty at its end.
inline std::string_view next_word(const char*& p, const char* end) {
  while (p != end && is_space(*p)) ++p;
  const char* const begin = p;
  while (p != end && !is_space(*p)) ++p;
  return {begin, size_t(p - begin)};
}

inline bool is_blank(const Line& line) {
  return std::all_of(line.begin, line.end, [](char c) { return is_space(c); });
}

// A line that holds one natural number only.
inline bool read_count(const Line& line, int64_t& count) {
  const char* p = line.begin;
  const std::string_view word = next_word(p, line.end);
  if (word.empty() || !next_word(p, line.end).empty()) return false;
  if (!std::all_of(word.begin(), word.end(), text::is_digit)) return false;
  return text::parse_int(word, count) == Whole::yes;
}

// A line with at least three numbers among its first words, and no '=': most likely of an atom.
inline bool looks_like_atom(const Line& line) {
  if (std::memchr(line.begin, '=', size_t(line.end - line.begin)) != nullptr) return false;
  int numbers = 0, words = 0;
  for (const char* p = line.begin; words < 8; ++words) {
    const std::string_view word = next_word(p, line.end);
    if (word.empty()) break;
    double value = 0;
    numbers += text::parse_double(word, value, true) || word.find_first_not_of('*') == std::string_view::npos;
  }
  return words >= 4 && numbers >= 3;
}

// Whether a frame may begin behind a line: not behind one number, since the second line of a frame may be a number too.
inline bool may_precede(const Line& line) {
  int64_t count = 0;
  return !read_count(line, count);
}

inline bool starts_with_vec(const Line& line) {
  const char* p = line.begin;
  return next_word(p, line.end).substr(0, 3) == "VEC";
}

}  // namespace extxyz
