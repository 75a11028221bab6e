// The columns of the lines of atoms, as the key Properties of a header states them.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "extxyz_lines.h"

namespace extxyz {

enum class Role { other, species, number, position };

struct Property {
  Role role = Role::other;
  char type = 'R';
  int width = 1;
  std::string name;
  int column = -1;  // in `Frames::atoms`
};

// Parses "name:type:columns:..."; returns why they cannot be used, empty if they can.
inline std::string read_properties(std::string_view words, std::vector<Property>& found) {
  found.clear();
  std::vector<std::string_view> parts;
  for (size_t at = 0; at <= words.size();) {
    const size_t stop = std::min(words.find(':', at), words.size());
    parts.push_back(words.substr(at, stop - at));
    at = stop + 1;
  }
  const auto refuse = [&](const std::string& why) { return why + " in " + quote(words); };
  if (parts.size() % 3 != 0) return refuse("not name:type:columns");
  bool species = false, number = false, position = false;
  for (size_t k = 0; k < parts.size(); k += 3) {
    Property property;
    int64_t width = 0;
    if (parts[k + 1].size() != 1 || std::strchr("RISL", parts[k + 1][0]) == nullptr)
      return refuse("no type " + quote(parts[k + 1]));
    if (text::parse_int(parts[k + 2], width) != Whole::yes || width < 1 || width > 10'000)
      return refuse("no number of columns " + quote(parts[k + 2]));
    property.type = parts[k + 1][0], property.width = int(width);
    const std::string_view name = parts[k];
    const auto is = [&](std::string_view word) { return text::equals_lower(name, word); };
    property.name = name;
    if (is("species") || is("symbols")) {
      property.role = Role::species, property.name = "symbols", species = true;
      if (width != 1 || (property.type != 'S' && property.type != 'I')) return refuse("species are one word");
    } else if (name == "Z" || name == "numbers") {
      property.role = Role::number, property.name = "numbers", number = true;
      if (width != 1 || property.type != 'I') return refuse("atomic numbers are one integer");
    } else if (is("pos") || is("positions")) {
      property.role = Role::position, property.name = "positions", position = true;
      if (width != 3 || (property.type != 'R' && property.type != 'I')) return refuse("positions are three reals");
    } else if (name == "charge") {
      property.name = "charges";
    } else if (is("force") || is("forces")) {
      for (char& c : property.name) c = text::to_lower(c);
    }
    for (const Property& other : found)
      if (other.name == property.name) return refuse(quote(name) + " twice");
    found.push_back(property);
  }
  if (!position) return refuse("no positions");
  if (!species && !number) return refuse("no species");
  if (number)  // they go before symbols, as in ASE; the symbols are kept as they are
    for (Property& property : found)
      if (property.role == Role::species) property.role = Role::other, property.type = 'S';
  return "";
}

}  // namespace extxyz
