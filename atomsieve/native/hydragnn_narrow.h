// HydraGNN's edges and its layer 0 of one feature: a table of elements and a few numbers for each edge, in double.
#pragma once
#include <cmath>
#include <cstdint>

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kTiny = 1e-9;  // HydraGNN adds it to lengths that it divides by

struct Edges {
    const int64_t *row_ptr, *sender;
    int64_t values, stride;  // K, and the length of a row of `basis` and `slope`: K values, then c_e
};

template <class T>
void geometry(int64_t edges, int64_t radial, double cutoff, const double *vec, T *basis, T *slope) {
    const int64_t stride = radial + 4;
#pragma omp parallel for schedule(static)
    for (int64_t e = 0; e < edges; ++e) {
        const double *d = vec + 3 * e;
        const double r = std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
        const double angle = kPi * r / cutoff, s1 = std::sin(angle), c1 = std::cos(angle);
        const bool within = r < cutoff;
        const double fc = within ? 0.5 * (c1 + 1) : 0, dfc = within ? -0.5 * kPi / cutoff * s1 : 0;  // (1) and its derivative
        T *b = basis + e * stride, *g = slope + e * stride;
        double sn = s1, cn = c1;
        for (int64_t n = 1; n <= radial; ++n) {
            const double rbf = sn / r, drbf = (n * kPi / cutoff * cn - rbf) / r;  // (1); sin(n x) by recursion
            b[n - 1] = T(rbf * fc);
            g[n - 1] = T(drbf * fc + rbf * dfc);
            const double next = sn * c1 + cn * s1;
            cn = cn * c1 - sn * s1;
            sn = next;
        }
        b[radial] = T(fc);
        g[radial] = T(dfc);
        const double q = 1 / ((r + kTiny) * r);  // (2)
        for (int x = 0; x < 3; ++x) {
            b[radial + 1 + x] = T(d[x] * q);
            g[radial + 1 + x] = T(0);
        }
    }
}

// What layer 0 is made of; `filters` holds K weights of the part along edges, then K of the scalar part.
struct Narrow {
    const double *table;  // [119,2]: payload along edges and scalar payload of each element
    const double *filters;
    double u, u_bias, v, v_bias;  // linear maps of vectors
    double length, scalar, bias;  // first map of the update
    double out[3], out_bias[3];   // second one: a_vv, a_sv, a_ss
};

inline Narrow narrow(const double *table, const double *filters, const double *p) {
    return {table, filters, p[0], p[1], p[2], p[3], p[4], p[5], p[6], {p[7], p[8], p[9]}, {p[10], p[11], p[12]}};
}

// Values of the update of one atom, from its scalar and vector after the message.
struct Mixed {
    double U[3], V[3], norm, slope, q[3], dot;
};

inline Mixed mix(const Narrow &m, double s, const double *v) {
    Mixed o;
    double square = 0;
    o.dot = 0;
    for (int x = 0; x < 3; ++x) {
        o.U[x] = m.u * v[x] + m.u_bias;  // (7)
        o.V[x] = m.v * v[x] + m.v_bias;
        square += o.V[x] * o.V[x];
        o.dot += o.U[x] * o.V[x];
    }
    o.norm = std::sqrt(square);
    const double y = m.length * o.norm + m.scalar * s + m.bias, gate = 1 / (1 + std::exp(-y)), h = y * gate;
    o.slope = gate * (1 + y * (1 - gate));
    for (int k = 0; k < 3; ++k) o.q[k] = m.out[k] * h + m.out_bias[k];  // (7)
    return o;
}

template <class T>
void narrow_forward(int64_t atoms, const Edges g, const int64_t *numbers, const T *basis, const Narrow m, double *state,
                    double *s0, T *v0) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < atoms; ++i) {
        double s = double(numbers[i]), v[3] = {0, 0, 0};
        for (int64_t e = g.row_ptr[i]; e < g.row_ptr[i + 1]; ++e) {
            const T *b = basis + e * g.stride;
            const double *phi = m.table + 2 * numbers[g.sender[e]];
            double along = 0, scalar = 0;
            for (int64_t r = 0; r < g.values; ++r) {
                along += m.filters[r] * b[r];
                scalar += m.filters[g.values + r] * b[r];
            }
            s += scalar * phi[1];  // (5) of one feature
            for (int x = 0; x < 3; ++x) v[x] += along * phi[0] * b[g.values + x];  // (6); vectors were zero
        }
        const Mixed o = mix(m, s, v);
        state[4 * i] = s;
        s0[i] = s + o.q[1] * o.dot + o.q[2];  // (8)
        v0[4 * i + 3] = 0;
        for (int x = 0; x < 3; ++x) {
            state[4 * i + 1 + x] = v[x];
            v0[4 * i + x] = T(v[x] + o.q[0] * o.U[x]);  // (8)
        }
    }
}

// From gradients by s0 and v0, and by length and direction of edges in layer 1 (`wide`), those by edge vectors.
template <class T>
void narrow_backward(int64_t atoms, const Edges g, const int64_t *numbers, const T *basis, const T *slope, const double *vec,
                     const Narrow m, const double *state, const double *gs0, const T *gv0, const T *wide, T *out) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < atoms; ++i) {
        const double *v = state + 4 * i + 1;
        const Mixed o = mix(m, state[4 * i], v);
        const T *gv = gv0 + 4 * i;
        const double gdot = gs0[i] * o.q[1];
        const double gq[3] = {gv[0] * o.U[0] + gv[1] * o.U[1] + gv[2] * o.U[2], gs0[i] * o.dot, gs0[i]};
        const double gy = (m.out[0] * gq[0] + m.out[1] * gq[1] + m.out[2] * gq[2]) * o.slope;
        const double gs = gs0[i] + gy * m.scalar, by_norm = o.norm > 0 ? gy * m.length / o.norm : 0;
        double gm[3];
        for (int x = 0; x < 3; ++x) {
            const double gu = gv[x] * o.q[0] + gdot * o.V[x];
            gm[x] = gv[x] + m.u * gu + m.v * (gdot * o.U[x] + by_norm * o.V[x]);
        }
        for (int64_t e = g.row_ptr[i]; e < g.row_ptr[i + 1]; ++e) {
            const T *b = basis + e * g.stride, *db = slope + e * g.stride, *c = b + g.values;
            const double *phi = m.table + 2 * numbers[g.sender[e]], *d = vec + 3 * e;
            double along = 0, dalong = 0, dscalar = 0;
            for (int64_t r = 0; r < g.values; ++r) {
                along += m.filters[r] * b[r];
                dalong += m.filters[r] * db[r];
                dscalar += m.filters[g.values + r] * db[r];
            }
            double by_length = wide[4 * e] + dscalar * phi[1] * gs;  // (5) by r, and both layers together
            by_length += dalong * phi[0] * (gm[0] * c[0] + gm[1] * c[1] + gm[2] * c[2]);  // (6) by r
            double by_c[3];
            for (int x = 0; x < 3; ++x) by_c[x] = wide[4 * e + 1 + x] + along * phi[0] * gm[x];
            const double r = std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]), q = 1 / ((r + kTiny) * r);
            by_length -= (by_c[0] * d[0] + by_c[1] * d[1] + by_c[2] * d[2]) * (2 * r + kTiny) * q * q;  // (2) by r
            for (int x = 0; x < 3; ++x) out[3 * e + x] = T(by_c[x] * q + by_length * d[x] / r);
        }
    }
}

}  // namespace
