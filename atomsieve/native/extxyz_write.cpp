// Prints structures as frames of extended XYZ: numbers in the shortest form that reads back as the same value.
#include <cmath>
#include <string>

#include "text_elements.h"

namespace {

using text::print_int;
using text::print_real;

// Free text that stands in the header of structures as it is: that of structure s is the text number `of[s]`.
struct Texts {
  const char* text;
  const int64_t* ends;
  const int32_t* of;

  void print(std::string& out, int64_t s) const {
    if (of == nullptr || of[s] < 0) return;
    const int64_t begin = of[s] > 0 ? ends[of[s] - 1] : 0;
    if (ends[of[s]] == begin) return;
    out.push_back(' ');
    out.append(text + begin, size_t(ends[of[s]] - begin));
  }
};

void print_key(std::string& out, const char* key) {
  out.push_back(' ');
  out.append(key);
  out.push_back('=');
}

// Nine numbers in quotes. Matrices are written column by column; the lattice vectors are the columns of the lattice.
void print_nine(std::string& out, const char* key, const double* m, bool by_columns, double factor) {
  out.append(key);
  out.append("=\"");
  for (int k = 0; k < 9; ++k) {
    if (k) out.push_back(' ');
    print_real(out, factor * m[by_columns ? 3 * (k % 3) + k / 3 : k], true);
  }
  out.push_back('"');
}

double volume(const double* c) {
  return std::fabs(c[0] * (c[4] * c[8] - c[5] * c[7]) - c[1] * (c[3] * c[8] - c[5] * c[6]) +
                   c[2] * (c[3] * c[7] - c[4] * c[6]));
}

}  // namespace

extern "C" {

// Structures to print, as a StructureBatch has them, and the names of a dialect. Arrays and names that are null are left
// out. Positions are floats where `positions` is null.
struct ExtxyzStructures {
  int64_t count;
  const int64_t* ptr;
  const uint8_t* numbers;
  const double* positions;
  const float* single_positions;
  const double* cell;
  const uint8_t* pbc;
  const int64_t* id;
  const float *charge, *spin;
  const double *energy, *forces, *stress;
  const uint8_t *has_energy, *has_forces, *has_stress;
  const char *lattice_key, *properties_key, *forces_key, *energy_key, *stress_key, *virial_key;
  const char *charge_key, *spin_key, *second_spin_key;
  const char* texts;
  const int64_t* text_ends;
  const int32_t* text_of;
};

void* extxyz_write(const ExtxyzStructures* given) {
  const ExtxyzStructures& g = *given;
  const Texts texts{g.texts, g.text_ends, g.text_of};
  auto* const result = new std::string;
  std::string& out = *result;
  out.reserve(size_t(g.ptr[g.count] - g.ptr[0]) * (g.forces == nullptr ? 64 : 128) + size_t(g.count) * 512);
  for (int64_t s = 0; s < g.count; ++s) {
    const int64_t first = g.ptr[s], last = g.ptr[s + 1];
    const bool forces = g.forces != nullptr && g.has_forces[s];
    print_int(out, last - first);
    out.push_back('\n');
    const double* const cell = g.cell + 9 * s;
    bool any = false;
    for (int k = 0; k < 9; ++k) any |= cell[k] != 0;
    if (any) {
      print_nine(out, g.lattice_key, cell, false, 1.0);
      out.push_back(' ');
    }
    out.append(g.properties_key);
    out.append("=species:S:1:pos:R:3");
    if (forces) {
      out.push_back(':');
      out.append(g.forces_key);
      out.append(":R:3");
    }
    if (g.id != nullptr) {  // a null pointer: ids are texts, among the other texts
      print_key(out, "id");
      print_int(out, g.id[s]);
    }
    if (g.charge != nullptr && !std::isnan(g.charge[s])) {
      print_key(out, g.charge_key);
      print_real(out, g.charge[s], true);
    }
    if (g.spin != nullptr && !std::isnan(g.spin[s]))
      for (const char* const key : {g.spin_key, g.second_spin_key}) {
        if (key == nullptr) continue;
        print_key(out, key);
        print_real(out, g.spin[s], true);
      }
    texts.print(out, s);
    if (g.energy != nullptr && g.has_energy[s]) {
      print_key(out, g.energy_key);
      print_real(out, g.energy[s], true);
    }
    if (g.stress != nullptr && g.has_stress[s]) {
      out.push_back(' ');
      if (g.virial_key == nullptr) print_nine(out, g.stress_key, g.stress + 9 * s, true, 1.0);
      else print_nine(out, g.virial_key, g.stress + 9 * s, true, -volume(cell));  // virial = -stress * volume
    }
    out.append(" pbc=\"");
    for (int k = 0; k < 3; ++k) {
      if (k) out.push_back(' ');
      out.push_back(g.pbc[3 * s + k] ? 'T' : 'F');
    }
    out.append("\"\n");
    for (int64_t a = first; a < last; ++a) {
      out.append(text::SYMBOLS[g.numbers[a] <= text::HEAVIEST ? g.numbers[a] : 0]);
      for (int64_t k = 3 * a; k < 3 * a + 3; ++k) {
        out.push_back(' ');
        if (g.positions != nullptr) print_real(out, g.positions[k], false);
        else print_real(out, double(g.single_positions[k]), false);
      }
      if (forces)
        for (int64_t k = 3 * a; k < 3 * a + 3; ++k) {
          out.push_back(' ');
          print_real(out, g.forces[k], false);
        }
      out.push_back('\n');
    }
  }
  return result;
}

const char* extxyz_text(const void* result) { return static_cast<const std::string*>(result)->data(); }
int64_t extxyz_text_size(const void* result) { return int64_t(static_cast<const std::string*>(result)->size()); }
void extxyz_free_text(void* result) { delete static_cast<std::string*>(result); }
}
