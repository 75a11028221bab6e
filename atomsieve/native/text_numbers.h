// Numbers as words of text, by the grammar of Python's int() and float(), exactly rounded; Fortran's exponent letter D.
#pragma once
#include <cfloat>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

namespace text {

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline char to_lower(char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; }
inline char to_upper(char c) { return c >= 'a' && c <= 'z' ? char(c - 32) : c; }

inline bool equals_lower(std::string_view word, std::string_view lower) {
  if (word.size() != lower.size()) return false;
  for (size_t k = 0; k < word.size(); ++k)
    if (to_lower(word[k]) != lower[k]) return false;
  return true;
}

// Remove underscores between digits, as Python allows them; false where one stands elsewhere.
inline bool drop_underscores(std::string_view word, std::string& out) {
  out.clear();
  for (size_t k = 0; k < word.size(); ++k) {
    if (word[k] != '_') {
      out.push_back(word[k]);
    } else if (k == 0 || k + 1 == word.size() || !is_digit(word[k - 1]) || !is_digit(word[k + 1])) {
      return false;
    }
  }
  return true;
}

enum class Whole { no, yes, too_large };

inline Whole parse_int(std::string_view word, int64_t& out) {
  std::string plain;
  if (word.find('_') != std::string_view::npos) {
    if (!drop_underscores(word, plain)) return Whole::no;
    word = plain;
  }
  const char *p = word.data(), *end = p + word.size();
  if (p != end && *p == '+') {
    ++p;
    if (p != end && *p == '-') return Whole::no;
  }
  const auto [stop, error] = std::from_chars(p, end, out);
  if (stop != end || p == end || error == std::errc::invalid_argument) return Whole::no;
  return error == std::errc() ? Whole::yes : Whole::too_large;
}

// `word` has the grammar of a float; the correctly rounded value of it.
inline double convert_exactly(std::string_view word, bool nonzero, int64_t magnitude) {
  double value = 0;
#if defined(__cpp_lib_to_chars)
  const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  (void)stop;
  if (error == std::errc()) return value;
  value = nonzero && magnitude > 0 ? std::numeric_limits<double>::infinity() : 0.0;
#else
  // Without from_chars for floats: the C library, which rounds exactly too; the decimal point is that of the locale "C".
  (void)nonzero, (void)magnitude;
  std::string copy(word);
  value = std::strtod(copy.c_str(), nullptr);
#endif
  return value;
}

// mantissa * 10^scale for -27 <= scale < 0, correctly rounded; false where another way must find it. Both factors are
// exact in the 64 bits of an x87 register, so the quotient is rounded once there; rounding it again to a double is right
// unless it lies exactly between two doubles.
inline bool divide_exactly(uint64_t mantissa, int64_t scale, double& out) {
#if LDBL_MANT_DIG == 64 && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  static constexpr long double powers[] = {1e0L,  1e1L,  1e2L,  1e3L,  1e4L,  1e5L,  1e6L,  1e7L,  1e8L,  1e9L,
                                           1e10L, 1e11L, 1e12L, 1e13L, 1e14L, 1e15L, 1e16L, 1e17L, 1e18L, 1e19L,
                                           1e20L, 1e21L, 1e22L, 1e23L, 1e24L, 1e25L, 1e26L, 1e27L};
  if (scale >= 0 || scale < -27) return false;
  const long double quotient = static_cast<long double>(mantissa) / powers[-scale];
  uint64_t bits;
  std::memcpy(&bits, &quotient, sizeof bits);
  if ((bits & 0x7FFu) == 0x400u) return false;
  out = double(quotient);
  return true;
#else
  (void)mantissa, (void)scale, (void)out;
  return false;
#endif
}

// Eight digits at p, or false: the bytes are taken together as one word (little-endian).
inline bool read_eight_digits(const char* p, uint64_t& mantissa) {
  uint64_t v;
  std::memcpy(&v, p, 8);
  const uint64_t high = 0xF0F0F0F0F0F0F0F0u;
  if (((v & high) | (((v + 0x0606060606060606u) & high) >> 4)) != 0x3333333333333333u) return false;
  v -= 0x3030303030303030u;
  v = v * 10 + (v >> 8);                                                    // pairs, then fours, then all eight
  v = ((v & 0x000000FF000000FFu) * 0x000F424000000064u + ((v >> 16) & 0x000000FF000000FFu) * 0x0000271000000001u) >> 32;
  mantissa = mantissa * 100000000 + v;
  return true;
}

// Parse a whole word as Python's float() does. With `fortran`, the exponent may be written with D.
inline bool parse_double(std::string_view word, double& out, bool fortran);

// Read a plain decimal number, without an exponent, that ends at a space or at `end`; moves p behind it. False for any
// other word, also for one that needs more care than one exact operation; p stays then.
inline bool read_plain_double(const char*& at, const char* end, double& out) {
  static constexpr double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10,
                                      1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19};
  const char* p = at;
  const bool negative = p != end && *p == '-';
  p += negative;
  uint64_t mantissa = 0;
  const char* const first = p;
  for (; p != end && is_digit(*p); ++p) mantissa = 10 * mantissa + uint64_t(*p - '0');
  int64_t digits = p - first, decimals = 0;
  if (p != end && *p == '.') {
    const char* const point = ++p;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (end - p >= 8 && read_eight_digits(p, mantissa)) p += 8;
#endif
    for (; p != end && is_digit(*p); ++p) mantissa = 10 * mantissa + uint64_t(*p - '0');
    decimals = p - point;
    digits += decimals;
  }
  // 18 digits cannot overflow; both factors must be exact doubles (Clinger 1990, the fast path).
  if (digits == 0 || digits > 18 || mantissa > (uint64_t(1) << 53) || (p != end && !is_space(*p))) return false;
  const double value = double(mantissa) / powers[decimals];
  out = negative ? -value : value;
  at = p;
  return FLT_EVAL_METHOD == 0;
}

inline bool parse_double(std::string_view word, double& out, bool fortran) {
  static constexpr double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                      1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  const char *p = word.data(), *const end = p + word.size();
  bool negative = false;
  if (p != end && (*p == '-' || *p == '+')) negative = *p++ == '-';
  if (p == end) return false;
  const char* const body = p;
  uint64_t mantissa = 0;
  int digits = 0, exact = 0;  // digits seen; significant digits in the mantissa
  int64_t scale = 0;          // power of ten of the mantissa
  for (; p != end && is_digit(*p); ++p, ++digits) {
    if (exact < 19) {
      mantissa = 10 * mantissa + uint64_t(*p - '0');
      exact += mantissa != 0;
    } else {
      ++scale;
      exact = 20;
    }
  }
  if (p != end && *p == '.') {
    for (++p; p != end && is_digit(*p); ++p, ++digits) {
      if (exact < 19) {
        mantissa = 10 * mantissa + uint64_t(*p - '0');
        exact += mantissa != 0;
        --scale;
      } else {
        exact = 20;
      }
    }
  }
  bool letter_d = false;
  if (digits && p != end) {
    const char letter = to_lower(*p);
    letter_d = fortran && letter == 'd';
    if (letter == 'e' || letter_d) {
      const char* q = p + 1;
      bool minus = false;
      if (q != end && (*q == '-' || *q == '+')) minus = *q++ == '-';
      const char* const first = q;
      int64_t exponent = 0;
      for (; q != end && is_digit(*q); ++q) exponent = exponent < 100000 ? 10 * exponent + (*q - '0') : exponent;
      if (q != first) {
        p = q;
        scale += minus ? -exponent : exponent;
      }
    }
  }
  if (p == end && digits) {
#if FLT_EVAL_METHOD == 0
    // Both factors are exact doubles, so one operation gives the rounded result (Clinger 1990, the fast path).
    if (exact < 20 && mantissa <= (uint64_t(1) << 53) && scale >= -22 && scale <= 22) {
      const double whole = double(mantissa), value = scale < 0 ? whole / powers[-scale] : whole * powers[scale];
      out = negative ? -value : value;
      return true;
    }
#endif
    if (exact < 20 && divide_exactly(mantissa, scale, out)) {
      if (negative) out = -out;
      return true;
    }
    std::string copy;
    std::string_view plain(body, size_t(end - body));
    if (letter_d) {
      copy = plain;
      for (char& c : copy) c = to_lower(c) == 'd' ? 'e' : c;
      plain = copy;
    }
    const double value = convert_exactly(plain, mantissa != 0, scale + exact);
    out = negative ? -value : value;
    return true;
  }
  const std::string_view rest(body, size_t(end - body));
  if (equals_lower(rest, "nan")) {
    out = std::numeric_limits<double>::quiet_NaN();
    return true;
  }
  if (equals_lower(rest, "inf") || equals_lower(rest, "infinity")) {
    out = negative ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
    return true;
  }
  if (rest.find('_') != std::string_view::npos) {
    std::string copy;
    if (!drop_underscores(word, copy)) return false;
    return parse_double(copy, out, fortran);
  }
  return false;
}

// Print the shortest word that reads back as the same value. `dot` adds ".0" to whole numbers, so that they stay reals.
template <class Real>
inline void print_real(std::string& out, Real value, bool dot) {
  char word[48];
  size_t size = 0;
#if defined(__cpp_lib_to_chars)
  size = size_t(std::to_chars(word, word + sizeof word, value).ptr - word);
#else
  for (int digits = std::numeric_limits<Real>::digits10; digits <= std::numeric_limits<Real>::max_digits10; ++digits) {
    size = size_t(std::snprintf(word, sizeof word, "%.*g", digits, double(value)));
    if (Real(std::strtod(word, nullptr)) == value) break;
  }
#endif
  out.append(word, size);
  if (dot && std::isfinite(value) && std::string_view(word, size).find_first_of(".e") == std::string_view::npos)
    out.append(".0");
}

inline void print_int(std::string& out, int64_t value) {
  char word[24];
  out.append(word, size_t(std::to_chars(word, word + sizeof word, value).ptr - word));
}

}  // namespace text
