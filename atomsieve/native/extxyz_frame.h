// Parses one frame of extended XYZ into flat arrays, or tells why it is none.
#pragma once
#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "extxyz_columns.h"
#include "extxyz_properties.h"
#include "text_elements.h"

namespace extxyz {

using text::Species;

constexpr int64_t LARGEST_FRAME = 50'000'000;
constexpr size_t LONGEST_HEADER = 16 << 20, LONGEST_LINE = 1 << 20, MOST_KEYS = 512;
constexpr size_t MOST_KEYS_OF_FRAME = 20'000;
constexpr int64_t SHORTEST_LINE = 8;  // an atom line "H 0 0 0\n"

enum Status : int64_t { MORE = 0, FOREIGN = 1, SPLIT = 2, STOPPED = 3, ENDED = 4, LOST = 5 };
enum class Outcome { good, bad, foreign, more, split };

// Kept between calls for the same file.
struct Reader {
  Header header;
  std::string properties_text = "?";  // text of the properties that were parsed last
  std::vector<Property> properties;
  std::string properties_error;
  std::string units;  // what the last frame said about units
  Frames frames;      // of the last call
};

class FrameParser {
 public:
  FrameParser(Reader& reader, Frames& out, const char* data, int64_t size, bool final, int64_t offset, int64_t line,
              int64_t left)
      : reader_(reader), out_(out), data_(data), end_(data + size), final_(final), offset_(offset), left_(left),
        line_(line) {}

  int64_t foreign_begin = 0, foreign_end = 0, line_after_foreign = 0;
  bool previous_fits = true;  // a frame may begin behind the line before the next one

 protected:
  Reader& reader_;
  Frames& out_;
  const char *const data_, *const end_;
  const bool final_;
  const int64_t offset_, left_;
  int64_t line_;
  // Of the frame that was parsed last.
  const char *after_ = nullptr, *bad_at_ = nullptr, *reason_ = "";
  int64_t line_after_ = 0, bad_line_ = 0;
  bool bad_previous_ = false;
  std::string detail_;

  // The line that begins at p. Not whole if its end lies beyond the piece.
  Line line_at(const char* p) const {
    Line line;
    line.begin = p;
    const auto* const stop = static_cast<const char*>(std::memchr(p, '\n', size_t(end_ - p)));
    line.whole = stop != nullptr || (final_ && p != end_);
    line.end = stop != nullptr ? stop : end_;
    line.next = stop != nullptr ? stop + 1 : end_;
    return line;
  }

  Outcome fail(const char* reason, std::string detail, const char* at, int64_t line, bool previous) {
    reason_ = reason, detail_ = std::move(detail), bad_at_ = at, bad_line_ = line, bad_previous_ = previous;
    return Outcome::bad;
  }

  // Parse the frame that begins at `begin`; `after_` is where the next one does, `bad_at_` where to look for it.
  Outcome parse_frame(const char* begin) {
    const Line first = line_at(begin);
    int64_t count = 0;
    if (!first.whole && first.end - first.begin <= 64) return Outcome::more;
    if (!read_count(first, count))
      return fail("lines that belong to no structure", "a number of atoms was expected, got " + quote(strip(first)), begin,
                  line_, false);
    if (count > LARGEST_FRAME)
      return fail("too many atoms", std::to_string(count) + ", the most is " + std::to_string(LARGEST_FRAME), first.next,
                  line_ + 1, true);
    if (first.next == end_ && !final_) return Outcome::more;
    const int64_t here = end_ - first.next;
    if (left_ >= 0 && (here + left_ + 1) / SHORTEST_LINE < count)
      return fail("the file ends within a structure", std::to_string(count) + " atoms are announced", first.next, line_ + 1,
                  false);
    if (first.next == end_)
      return fail("the file ends within a structure", "the line after the number of atoms is missing", end_, line_ + 1,
                  false);
    const Line head = line_at(first.next);
    if (!head.whole) {
      if (size_t(head.end - head.begin) <= LONGEST_HEADER) return Outcome::more;
      return fail("a header of more than 16 MB", "", head.next, line_ + 1, false);
    }
    if (head.next == end_ && count > 0 && final_)
      return fail("the file ends within a structure", ends_after(0, count), end_, line_ + 2, false);
    const Bytes bytes = classify(head.view());
    const char* problem = nullptr;
    std::string detail;
    if (bytes == Bytes::odd) return skip_foreign(begin, head, count);
    if (!read_header(head.view(), problem, detail)) return fail(problem, detail, head.next, line_ + 1, false);
    if (out_.info.size() > MOST_KEYS && out_.count() + out_.bad.size() > 0) return Outcome::split;
    if (!join_columns()) return Outcome::split;
    return read_atoms(begin, head, count);
  }

  static std::string_view strip(const Line& line) {
    std::string_view out = line.view();
    while (!out.empty() && is_space(out.front())) out.remove_prefix(1);
    while (!out.empty() && is_space(out.back())) out.remove_suffix(1);
    return out;
  }

  // A frame that another parser has to read: finds its end only.
  Outcome skip_foreign(const char* begin, const Line& head, int64_t count) {
    Line line = head;
    for (int64_t k = 0; k < count; ++k) {
      if (line.next == end_) {
        if (!final_) return Outcome::more;
        return fail("the file ends within a structure", ends_after(k, count), end_, line_ + 2 + k, true);
      }
      line = line_at(line.next);
      if (!line.whole) return Outcome::more;
      if (!looks_like_atom(line))
        return fail("not a line of an atom", quote(strip(line)), line.begin, line_ + 2 + k, k > 0);
    }
    int64_t vectors = 0;
    while (true) {
      if (line.next == end_) {
        if (!final_) return Outcome::more;
        break;
      }
      const Line next = line_at(line.next);
      if (!next.whole) return Outcome::more;
      if (!starts_with_vec(next)) break;
      line = next;
      ++vectors;
    }
    foreign_begin = offset_ + (begin - data_), foreign_end = offset_ + (line.next - data_);
    line_after_foreign = line_ + 2 + count + vectors;
    return Outcome::foreign;
  }

  static std::string ends_after(int64_t k, int64_t count) {
    return "after " + std::to_string(k) + " of " + std::to_string(count) + " atoms";
  }

  // -- the header ------------------------------------------------------------------------------------------------

  const Entry *lattice_ = nullptr, *periodic_ = nullptr, *columns_ = nullptr;

  bool read_header(std::string_view line, const char*& problem, std::string& detail) {
    Header& header = reader_.header;
    if (!header.parse(line)) return problem = "a header that begins with '='", false;
    if (header.entries.size() > MOST_KEYS_OF_FRAME) return problem = "a header of more than 20,000 keys", false;
    lattice_ = find("Lattice", "lattice"), columns_ = find("Properties", "properties"), periodic_ = find("pbc", "pbc");
    const bool extended = lattice_ != nullptr || columns_ != nullptr;
    if (extended && header.open_quote) return problem = "a quote or bracket in the header is not closed", false;
    if (extended && !check_twice(problem, detail)) return false;
    if (lattice_ != nullptr) {
      const Value& v = lattice_->value;
      if (v.count != 9 || !(v.kind & (INTS | REALS)) || (v.rank == 2 && !is_symmetric(v))) {
        problem = "a lattice that is not nine numbers";
        detail = quote(v.words);
        return false;
      }
    }
    if (periodic_ != nullptr) {
      const Value& v = periodic_->value;
      if (!(v.kind & (INTS | REALS | BOOLS)) || !(v.rank == 0 || (v.rank == 1 && v.count == 3))) {
        problem = "pbc is not one or three truth values";
        detail = quote(v.words);
        return false;
      }
    }
    const std::string_view wanted = columns_ != nullptr ? columns_->value.words : "species:S:1:pos:R:3";
    if (wanted != reader_.properties_text) {
      reader_.properties_text = wanted;
      reader_.properties_error = read_properties(wanted, reader_.properties);
    }
    if (!reader_.properties_error.empty()) {
      problem = "Properties that cannot be used";
      detail = reader_.properties_error;
      return false;
    }
    return true;
  }

  bool is_symmetric(const Value& v) const {
    const double* m = &reader_.header.reals[v.first];
    return v.rows == 3 && m[1] == m[3] && m[2] == m[6] && m[5] == m[7];
  }

  // The entry of an exact key, else the only one that equals it in any case.
  const Entry* find(std::string_view key, std::string_view lower) const {
    const Entry* other = nullptr;
    const Entry* exact = nullptr;
    for (const Entry& entry : reader_.header.entries) {
      if (entry.key.size() != key.size()) continue;
      if (entry.key == key) exact = &entry;
      else if (text::equals_lower(entry.key, lower)) other = &entry;
    }
    return exact != nullptr ? exact : other;
  }

  bool check_twice(const char*& problem, std::string& detail) {
    const std::vector<Entry>& entries = reader_.header.entries;
    const auto differ = [&](const Entry& a, const Entry& b) {
      if (a.key.size() != b.key.size() || a.key != b.key || a.value.words == b.value.words) return false;
      problem = "a key twice with two values";
      detail = std::string(a.key);
      return true;
    };
    if (entries.size() > MOST_KEYS) {  // pairs of so many would take for ever
      std::unordered_map<std::string_view, const Entry*> seen;
      for (const Entry& entry : entries)
        if (differ(entry, *seen.try_emplace(entry.key, &entry).first->second)) return false;
      return true;
    }
    for (size_t a = 1; a < entries.size(); ++a)
      for (size_t b = 0; b < a; ++b)
        if (differ(entries[a], entries[b])) return false;
    return true;
  }

  // Finds the column of every property; false where one of that name holds something else.
  bool join_columns() {
    for (Property& property : reader_.properties) {
      if (property.role != Role::other) continue;
      if (property.column >= 0) continue;
      for (size_t k = 0; k < out_.atoms.size(); ++k)
        if (out_.atoms[k].name == property.name) property.column = int(k);
      if (property.column < 0) {
        property.column = int(out_.atoms.size());
        out_.atoms.emplace_back();
        out_.atoms.back().name = property.name;
      }
      AtomColumn& column = out_.atoms[size_t(property.column)];
      if (column.place.empty()) column.type = property.type, column.width = property.width;
      if (column.type != property.type || column.width != property.width) return false;
    }
    return same_units();
  }

  // What the header says about units, which must be equal for all frames of one call.
  bool same_units() {
    std::string now;
    for (const Entry& entry : reader_.header.entries) {
      const std::string_view key = entry.key;
      if (key.size() < 6) continue;
      const char last = text::to_lower(key.back());
      if (last != 't' && last != 's') continue;
      std::string_view base = last == 's' ? key.substr(0, key.size() - 1) : key;
      if (base.size() < 5 || !text::equals_lower(base.substr(base.size() - 4), "unit")) continue;
      now.append(key).push_back('\n');
      now.append(entry.value.words).push_back('\n');
    }
    if (now == reader_.units) return true;
    if (out_.count() + out_.bad.size() > 0) return false;
    reader_.units = now;
    return true;
  }

  // -- the atoms -------------------------------------------------------------------------------------------------

  // Gives every column room for the atoms of a frame, or takes that of the atoms behind `atoms` back.
  void resize(size_t atoms, int64_t more) {
    out_.numbers.resize(atoms + size_t(more));
    out_.positions.resize(3 * (atoms + size_t(more)));
    for (const Property& property : reader_.properties) {
      if (property.role != Role::other) continue;
      AtomColumn& column = out_.atoms[size_t(property.column)];
      const size_t size = column_start_[size_t(property.column)] + size_t(more) * size_t(property.width);
      if (property.type == 'R') column.reals.resize(size);
      else if (property.type == 'I') column.ints.resize(size);
      else if (property.type == 'L') column.bools.resize(size);
      else if (more == 0) {
        column.text_end.resize(size);
        column.texts.resize(size == 0 ? 0 : size_t(column.text_end.back()));
      }
    }
  }

  std::vector<size_t> column_start_;  // values of each column before the frame

  Outcome read_atoms(const char* begin, const Line& head, int64_t count) {
    const char* p = head.next;
    // No more room than the bytes that are there can fill: a count may lie.
    const int64_t room = std::min(count, (end_ - p + 1) / SHORTEST_LINE + 1);
    const size_t before = out_.numbers.size();
    column_start_.clear();
    for (const AtomColumn& c : out_.atoms)
      column_start_.push_back(c.reals.size() + c.ints.size() + c.bools.size() + c.text_end.size());
    resize(before, room);
    const auto undo = [&](Outcome outcome) {
      resize(before, 0);
      return outcome;
    };
    bool heavy = false, more_words = false;
    for (int64_t k = 0; k < count; ++k) {
      if (p == end_) {
        if (!final_) return undo(Outcome::more);
        return undo(fail("the file ends within a structure", ends_after(k, count), end_, line_ + 2 + k, true));
      }
      const Line line = line_at(p);
      if (k == room) return undo(fail("not a line of an atom", quote(strip(line)), p, line_ + 2 + k, true));
      if (!line.whole) {
        if (size_t(line.end - line.begin) <= LONGEST_LINE) return undo(Outcome::more);
        return undo(fail("not a line of an atom", "a line of more than 1 MB", line.begin, line_ + 2 + k, true));
      }
      if (!read_atom(line, before + size_t(k), size_t(k), heavy, more_words)) {
        bad_at_ = line.begin, bad_line_ = line_ + 2 + k, bad_previous_ = k > 0;
        if (detail_.empty()) detail_ = quote(strip(line));
        if (line.next == end_ && final_ && end_[-1] != '\n') reason_ = "the file ends within a structure";
        return undo(Outcome::bad);
      }
      p = line.next;
    }
    if (p == end_ && !final_) return undo(Outcome::more);
    if (p != end_) {
      const Line next = line_at(p);
      if (!next.whole && next.end - next.begin <= 64) return undo(Outcome::more);
      int64_t other = 0;
      if (!read_count(next, other) && !is_blank(next)) {
        if (starts_with_vec(next)) return undo(skip_foreign(begin, head, count));
        if (!next.whole && size_t(next.end - next.begin) <= LONGEST_LINE) return undo(Outcome::more);
        if (looks_like_atom(next))
          return undo(fail("more lines of atoms than the number of atoms says", std::to_string(count) + " are announced",
                           next.begin, line_ + 2 + count, true));
      }
    }
    commit(begin, heavy, more_words);
    after_ = p;
    line_after_ = line_ + 2 + count;
    return Outcome::good;
  }

  bool refuse_word(const char* reason, std::string_view word) {
    reason_ = reason;
    detail_ = quote(word);
    return false;
  }

  // Reads one line into row `atom` of the positions, row `k` of the frame in each column.
  bool read_atom(const Line& line, size_t atom, size_t k, bool& heavy, bool& more_words) {
    const char* p = line.begin;
    detail_.clear();
    for (const Property& property : reader_.properties) {
      const bool real = property.role == Role::position || (property.role == Role::other && property.type == 'R');
      if (real) {
        double* out = property.role == Role::position
                          ? &out_.positions[3 * atom]
                          : &out_.atoms[size_t(property.column)]
                                 .reals[column_start_[size_t(property.column)] + k * size_t(property.width)];
        for (int c = 0; c < property.width; ++c) {
          while (p != line.end && is_space(*p)) ++p;
          if (text::read_plain_double(p, line.end, out[c])) continue;
          const std::string_view word = next_word(p, line.end);
          if (word.empty()) return too_few(line);
          if (!text::parse_double(word, out[c], true)) return refuse_word("not a number", word);
        }
        continue;
      }
      for (int c = 0; c < property.width; ++c) {
        const std::string_view word = next_word(p, line.end);
        if (word.empty()) return too_few(line);
        if (!read_word(property, word, atom, k * size_t(property.width) + size_t(c), heavy)) return false;
      }
    }
    while (p != line.end && is_space(*p)) ++p;
    more_words |= p != line.end;
    return true;
  }

  bool too_few(const Line& line) {
    reason_ = is_blank(line) ? "a blank line where an atom was expected"
                             : "fewer words on the line of an atom than Properties state";
    return false;
  }

  // Takes a word that is no real number as value `k` of the frame.
  bool read_word(const Property& property, std::string_view word, size_t atom, size_t k, bool& heavy) {
    if (property.role == Role::species) {
      switch (text::find_element(word, out_.numbers[atom])) {
        case Species::element: return true;
        case Species::heavy_hydrogen: return heavy = true;
        case Species::ghost: return refuse_word("a ghost atom or placeholder", word);
        case Species::unknown: return refuse_word("not a symbol of an element", word);
      }
    }
    if (property.role == Role::number) {
      int64_t number = 0;
      if (text::parse_int(word, number) != Whole::yes) return refuse_word("not an atomic number", word);
      if (number == 0) return refuse_word("a ghost atom or placeholder", word);
      if (number < 1 || number > text::HEAVIEST) return refuse_word("an atomic number outside 1..118", word);
      out_.numbers[atom] = uint8_t(number);
      return true;
    }
    AtomColumn& column = out_.atoms[size_t(property.column)];
    const size_t at = column_start_[size_t(property.column)] + k;
    if (property.type == 'I') {
      if (text::parse_int(word, column.ints[at]) != Whole::yes) return refuse_word("not an integer", word);
    } else if (property.type == 'L') {
      bool value = false;
      if (!parse_bool(word, value)) {
        if (word != "0" && word != "1") return refuse_word("not a truth value", word);
        value = word == "1";
      }
      column.bools[at] = value;
    } else {
      column.texts.append(word);
      column.text_end.push_back(int64_t(column.texts.size()));
    }
    return true;
  }

  void commit(const char* begin, bool heavy, bool more_words) {
    const Header& header = reader_.header;
    const int32_t frame = int32_t(out_.count());
    out_.heavy_hydrogen += heavy, out_.more_words += more_words;
    out_.ptr.push_back(int64_t(out_.numbers.size()));
    out_.starts.push_back(offset_ + (begin - data_));
    for (int k = 0; k < 9; ++k) out_.cells.push_back(lattice_ == nullptr ? 0.0 : header.reals[lattice_->value.first + size_t(k)]);
    for (size_t k = 0; k < 3; ++k) {
      bool on = lattice_ != nullptr;
      if (periodic_ != nullptr) on = header.reals[periodic_->value.first + (periodic_->value.rank ? k : 0)] != 0;
      out_.pbc.push_back(on);
    }
    for (const Property& property : reader_.properties)
      if (property.role == Role::other) out_.atoms[size_t(property.column)].place.push_back(frame);
    size_t k = 0;
    for (const Entry& entry : header.entries) {
      if (&entry == lattice_ || &entry == periodic_ || &entry == columns_) continue;
      InfoColumn& column = out_.find_info(entry.key, k++);
      if (!column.place.empty() && column.place.back() == frame) continue;  // the same value twice
      add_value(column, frame, entry);
    }
  }

  // As ASE has them, stress is in Voigt's order xx yy zz yz xz xy, and virial a matrix of columns.
  void add_value(InfoColumn& column, int32_t frame, const Entry& entry) {
    Header& header = reader_.header;
    Value value = entry.value;
    const bool stress = entry.key == "stress";
    if (!(stress || entry.key == "virial") || value.count != 9 || !(value.kind & (INTS | REALS)) || value.rank == 0) {
      column.add(frame, value, header);
      return;
    }
    const bool nested = value.rank == 2;
    const std::vector<size_t> order = stress   ? nested ? std::vector<size_t>{0, 4, 8, 5, 2, 1}
                                                        : std::vector<size_t>{0, 4, 8, 7, 6, 3}
                                      : nested ? std::vector<size_t>{0, 1, 2, 3, 4, 5, 6, 7, 8}
                                               : std::vector<size_t>{0, 3, 6, 1, 4, 7, 2, 5, 8};
    const size_t first = header.reals.size();
    for (const size_t k : order) {
      header.ints.push_back(header.ints[value.first + k]);
      header.reals.push_back(header.reals[value.first + k]);
    }
    value.first = first, value.count = order.size();
    value.rank = stress ? 1 : 2, value.rows = stress ? 6 : 3, value.columns = stress ? 1 : 3;
    column.add(frame, value, header);
  }
};

}  // namespace extxyz
