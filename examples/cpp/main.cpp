// Energy, uncertainty and forces of copper from an exported ensemble, without Python: ./predict model.ts [head]
#include <torch/script.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

using Vector = std::array<double, 3>;

struct Edge {
    int64_t sender;
    std::array<int, 3> shift;
};

static double dot(const Vector& a, const Vector& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

static Vector cross(const Vector& a, const Vector& b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

// Return the neighbours of each atom within `cutoff`, by testing all relevant translations of a periodic cell.
// Atoms must lie inside the cell. An edge from j to i has vec = pos[j] + shift @ cell - pos[i].
static std::vector<std::vector<Edge>> find_neighbors(
    const std::vector<Vector>& positions, const std::array<Vector, 3>& cell, double cutoff) {
    std::array<int, 3> reach;
    for (int k = 0; k < 3; ++k) {
        const Vector normal = cross(cell[(k + 1) % 3], cell[(k + 2) % 3]);
        reach[k] = int(std::ceil(cutoff * std::sqrt(dot(normal, normal)) / std::abs(dot(cell[k], normal)))) + 1;
    }
    std::vector<std::vector<Edge>> found(positions.size());
    for (size_t i = 0; i < positions.size(); ++i)
        for (size_t j = 0; j < positions.size(); ++j)
            for (int a = -reach[0]; a <= reach[0]; ++a)
                for (int b = -reach[1]; b <= reach[1]; ++b)
                    for (int c = -reach[2]; c <= reach[2]; ++c) {
                        Vector vec;
                        for (int x = 0; x < 3; ++x)
                            vec[x] = positions[j][x] - positions[i][x] + a * cell[0][x] + b * cell[1][x] + c * cell[2][x];
                        if (dot(vec, vec) < cutoff * cutoff && !(i == j && a == 0 && b == 0 && c == 0))
                            found[i].push_back({int64_t(j), {a, b, c}});
                    }
    return found;
}

static void predict(const char* path, int64_t head) {
    torch::jit::ExtraFilesMap said{{"cutoff", ""}, {"heads", ""}, {"inputs", ""}, {"outputs", ""}};
    torch::jit::Module model = torch::jit::load(path, torch::kCPU, said);
    const std::string wanted = R"(["numbers", "positions", "cell", "structure", "neighbors", "shifts", "head"])";
    if (said["inputs"] != wanted)
        throw std::runtime_error("this model takes " + said["inputs"] + ", this program gives " + wanted);

    const double a = 3.615;  // fcc copper, Angstrom; the first atom is displaced from its site
    std::array<Vector, 3> cell{{{a, 0, 0}, {0, a, 0}, {0, 0, a}}};
    std::vector<Vector> positions{{0.1, 0, 0}, {0, a / 2, a / 2}, {a / 2, 0, a / 2}, {a / 2, a / 2, 0}};
    const auto neighbors = find_neighbors(positions, cell, std::stod(said["cutoff"]));
    const int64_t atoms = positions.size();
    size_t width = 1;
    for (const auto& row : neighbors) width = std::max(width, row.size());

    const auto i64 = torch::TensorOptions().dtype(torch::kInt64);
    torch::Tensor table = torch::full({atoms, int64_t(width)}, -1, i64);  // -1 marks an empty place
    torch::Tensor shifts = torch::zeros({atoms, int64_t(width), 3}, torch::kInt32);
    for (int64_t i = 0; i < atoms; ++i)
        for (size_t k = 0; k < neighbors[i].size(); ++k) {
            table[i][k] = neighbors[i][k].sender;
            for (int x = 0; x < 3; ++x) shifts[i][k][x] = neighbors[i][k].shift[x];
        }

    c10::InferenceMode guard;
    const auto out = model.forward({
        torch::full({atoms}, 29, torch::kUInt8),  // atomic numbers
        torch::from_blob(positions.data(), {atoms, 3}, torch::kFloat64),
        torch::from_blob(cell.data(), {1, 3, 3}, torch::kFloat64),
        torch::zeros({atoms}, i64),  // structure of each atom
        table, shifts, torch::full({1}, head, i64),
    }).toTuple()->elements();
    std::printf("heads %s, using number %ld\n", said["heads"].c_str(), long(head));
    std::printf("energy %.12f eV\n", out[0].toTensor().item<double>());
    std::printf("spread %.12f eV\n", out[1].toTensor().item<double>());
    if (out.size() < 4) return;  // an energy-only export
    const torch::Tensor forces = out[3].toTensor().to(torch::kFloat64);
    for (int64_t i = 0; i < atoms; ++i)
        std::printf("force on atom %ld: %.12f %.12f %.12f eV/Angstrom\n", long(i), forces[i][0].item<double>(),
                    forces[i][1].item<double>(), forces[i][2].item<double>());
}

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) {
        std::fprintf(stderr, "usage: %s model.ts [head]\n", argv[0]);
        return 2;
    }
    try {
        predict(argv[1], argc > 2 ? std::stol(argv[2]) : 0);
    } catch (const c10::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what_without_backtrace());
        return 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}
