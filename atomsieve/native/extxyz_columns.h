// Frames as flat arrays, with a column for each key of the headers and for each property of the atoms.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "extxyz_header.h"

namespace extxyz {

// Values of one key: a row for each frame that has it.
struct InfoColumn {
  std::string key;
  std::vector<int32_t> place;    // frames that have it
  std::vector<uint8_t> kind;     // of each value
  std::vector<int32_t> shape;    // rank, rows, columns of each value
  std::vector<int64_t> at;       // first number of each value, or number of its text
  std::vector<int64_t> ints;     // numbers; truth values are 0 and 1, reals are 0
  std::vector<double> reals;     // the same numbers as reals
  std::string texts;
  std::vector<int64_t> text_end;
  unsigned kinds = 0;
  bool one_shape = true;

  void clear() {
    place.clear(), kind.clear(), shape.clear(), at.clear(), ints.clear(), reals.clear(), texts.clear();
    text_end.clear();
    kinds = 0, one_shape = true;
  }

  void add(int32_t frame, const Value& value, const Header& header) {
    const int32_t own[3] = {value.rank, value.rows, value.columns};
    if (!place.empty() && std::memcmp(own, shape.data(), sizeof own) != 0) one_shape = false;
    place.push_back(frame);
    kind.push_back(value.kind);
    kinds |= value.kind;
    shape.insert(shape.end(), own, own + 3);
    if (value.kind & (TEXT | JSON)) {
      if (text_end.empty() || last_text() != value.words) {
        texts.append(value.words);
        text_end.push_back(int64_t(texts.size()));
      }
      at.push_back(int64_t(text_end.size()) - 1);
      return;
    }
    at.push_back(int64_t(reals.size()));
    ints.insert(ints.end(), header.ints.begin() + value.first, header.ints.begin() + value.first + value.count);
    reals.insert(reals.end(), header.reals.begin() + value.first, header.reals.begin() + value.first + value.count);
  }

 private:
  std::string_view last_text() const {
    const int64_t begin = text_end.size() > 1 ? text_end[text_end.size() - 2] : 0;
    return std::string_view(texts).substr(size_t(begin));
  }
};

// One property of the atoms: `width` words of each of them.
struct AtomColumn {
  std::string name;
  char type = 'R';
  int width = 1;
  std::vector<int32_t> place;  // frames that have it
  std::vector<double> reals;
  std::vector<int64_t> ints;
  std::vector<uint8_t> bools;
  std::string texts;
  std::vector<int64_t> text_end;

  void clear() { place.clear(), reals.clear(), ints.clear(), bools.clear(), texts.clear(), text_end.clear(); }
};

struct Bad {
  int64_t place, start, at, line;  // of the frame among all; bytes of the frame and of the line that is wrong
  const char* reason;
  std::string detail;
};

struct Frames {
  std::vector<int64_t> ptr{0};
  std::vector<uint8_t> numbers;
  std::vector<double> positions, cells;
  std::vector<uint8_t> pbc;
  std::vector<int64_t> starts;
  std::vector<InfoColumn> info;
  std::vector<AtomColumn> atoms;
  std::vector<Bad> bad;
  std::unordered_map<std::string, size_t> by_key;
  std::vector<size_t> order;  // column of the k-th key of the frame before
  int64_t heavy_hydrogen = 0, more_words = 0;

  size_t count() const { return ptr.size() - 1; }

  // Empty, but with the memory and the columns of before, unless those are many.
  void clear(size_t most_keys) {
    ptr.assign(1, 0);
    numbers.clear(), positions.clear(), cells.clear(), pbc.clear(), starts.clear(), bad.clear();
    heavy_hydrogen = more_words = 0;
    if (info.size() > most_keys) info.clear(), by_key.clear(), order.clear();
    if (atoms.size() > most_keys) atoms.clear();
    for (InfoColumn& column : info) column.clear();
    for (AtomColumn& column : atoms) column.clear();
  }

  InfoColumn& find_info(std::string_view key, size_t k) {
    if (k < order.size() && info[order[k]].key == key) return info[order[k]];
    const auto [where, fresh] = by_key.try_emplace(std::string(key), info.size());
    if (fresh) {
      info.emplace_back();
      info.back().key = key;
    }
    if (k >= order.size()) order.resize(k + 1, where->second);
    order[k] = where->second;
    return info[where->second];
  }
};

}  // namespace extxyz
