// Symbols of the elements: words to atomic numbers and back.
#pragma once
#include <cstdint>
#include <string_view>

#include "text_numbers.h"

namespace text {

constexpr int HEAVIEST = 118;

inline constexpr const char* SYMBOLS[HEAVIEST + 1] = {
    "X",  "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si", "P",  "S",
    "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As",
    "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn",
    "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho",
    "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",  "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po",
    "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md",
    "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};

struct ElementTable {
  uint8_t number[26][27] = {};  // first letter; second letter, 26 for none
  ElementTable() {
    for (int z = 1; z <= HEAVIEST; ++z) number[SYMBOLS[z][0] - 'A'][SYMBOLS[z][1] ? SYMBOLS[z][1] - 'a' : 26] = uint8_t(z);
  }
};

enum class Species { element, heavy_hydrogen, ghost, unknown };

// The atomic number of a symbol in any case, or of a number written as a word. D and T are hydrogen.
inline Species find_element(std::string_view word, uint8_t& number) {
  static const ElementTable table;
  if (word.empty()) return Species::unknown;
  const char first = to_upper(word[0]);
  if (first >= 'A' && first <= 'Z' && word.size() <= 2) {
    const char second = word.size() == 2 ? to_lower(word[1]) : 'a';
    number = word.size() == 1                   ? table.number[first - 'A'][26]
             : second >= 'a' && second <= 'z' ? table.number[first - 'A'][second - 'a']
                                              : uint8_t(0);
    if (number) return Species::element;
    if (word.size() == 1 && (first == 'D' || first == 'T')) {
      number = 1;
      return Species::heavy_hydrogen;
    }
  }
  int64_t z = 0;
  if (is_digit(first) && parse_int(word, z) == Whole::yes && z >= 1 && z <= HEAVIEST) {
    number = uint8_t(z);
    return Species::element;
  }
  if (word == "0" || equals_lower(word, "x") || equals_lower(word, "xx") || equals_lower(word, "bq") ||
      equals_lower(word, "ghost") || (word.size() >= 2 && equals_lower(word.substr(0, 2), "gh")))
    return Species::ghost;
  return Species::unknown;
}

}  // namespace text
