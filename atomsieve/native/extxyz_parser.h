// Parses the frames of a piece of extended XYZ; goes on behind a frame that is damaged.
#pragma once
#include "extxyz_frame.h"

namespace extxyz {

class Parser : public FrameParser {
 public:
  using FrameParser::FrameParser;

  // Parse until the piece ends or something else has to happen; `at` is where the next call must go on.
  // `lost`: a frame is looked for, up to `stop` only where none was read before it.
  Status run(const char*& at, int64_t& line, int64_t stop, bool lost, bool first) {
    const char* p = at;
    Status status = ENDED;
    while (true) {
      if (lost) {
        const Outcome found = find_next(p, first ? stop : -1);
        if (found == Outcome::split) {
          status = STOPPED;
          break;
        }
        first = false;
        if (found == Outcome::more) {
          status = LOST;
          break;
        }
        if (found == Outcome::bad) {  // the file ends, no frame was found
          status = ENDED;
          break;
        }
        lost = false;
      }
      if (!skip_blank(p)) {
        status = final_ ? ENDED : MORE;
        break;
      }
      if (p == end_ && final_) {
        status = ENDED;
        break;
      }
      if (stop >= 0 && offset_ + (p - data_) >= stop) {
        status = STOPPED;
        break;
      }
      const Outcome outcome = parse_frame(p);
      if (outcome == Outcome::more) {
        status = MORE;
        break;
      }
      if (outcome == Outcome::split) {
        status = SPLIT;
        break;
      }
      if (outcome == Outcome::foreign) {
        status = FOREIGN;
        break;
      }
      if (outcome == Outcome::bad) {
        out_.bad.push_back({int64_t(out_.count() + out_.bad.size()), offset_ + (p - data_), offset_ + (bad_at_ - data_),
                            bad_line_, reason_, detail_});
        p = bad_at_;
        line_ = bad_line_;
        previous_fits = bad_previous_;
        lost = true;
        continue;
      }
      p = after_;
      line_ = line_after_;
    }
    at = p;
    line = line_;
    return status;
  }

 private:
  // Moves p to the next line that is not blank; false where the piece ends before that is known.
  bool skip_blank(const char*& p) {
    while (p != end_) {
      const Line line = line_at(p);
      if (!line.whole) return !is_blank(line) && line.end - line.begin > 64;
      if (!is_blank(line)) return true;
      p = line.next;
      ++line_;
    }
    return final_;
  }

  // Moves p to the next line that begins a frame: one number, before lines that make a frame.
  // Outcome::more: the piece ends before that is known. Outcome::bad: there is none.
  Outcome find_next(const char*& p, int64_t stop) {
    while (p != end_) {
      if (stop >= 0 && offset_ + (p - data_) >= stop) return Outcome::split;
      const Line line = line_at(p);
      if (!line.whole) {
        if (line.end - line.begin < int64_t(LONGEST_LINE)) return Outcome::more;
        p = end_;  // no line of a frame is as long
        previous_fits = false;
        return Outcome::more;
      }
      int64_t count = 0;
      if (previous_fits && read_count(line, count) && count <= LARGEST_FRAME) {
        const Outcome found = check_out(line, count);
        if (found != Outcome::bad) return found;
      }
      previous_fits = may_precede(line);
      p = line.next;
      ++line_;
    }
    return final_ ? Outcome::bad : Outcome::more;
  }

  // Whether a header and lines of `count` atoms, not more, follow the line of a count.
  Outcome check_out(const Line& first, int64_t count) const {
    Line line = first.next == end_ && !final_ ? Line() : line_at(first.next);
    if (first.next == end_) return final_ ? Outcome::bad : Outcome::more;
    if (!line.whole) return size_t(line.end - line.begin) > LONGEST_HEADER ? Outcome::bad : Outcome::more;
    for (int64_t k = 0; k < count; ++k) {
      const char* const next = line.next;
      if (next == end_) return final_ ? Outcome::bad : Outcome::more;
      line = line_at(next);
      if (!line.whole) return size_t(line.end - line.begin) > LONGEST_LINE ? Outcome::bad : Outcome::more;
      if (!looks_like_atom(line)) return Outcome::bad;
    }
    if (line.next == end_) return final_ ? Outcome::good : Outcome::more;
    line = line_at(line.next);
    if (!line.whole) return Outcome::more;
    return looks_like_atom(line) && !starts_with_vec(line) ? Outcome::bad : Outcome::good;
  }
};

}  // namespace extxyz
