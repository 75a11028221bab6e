// Arrays of the neighbour search, and the distance test on them that the processor does several points at a time.
#pragma once

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace atomsieve {

struct Half {  // edge from j to the atom whose row it is in, j >= i; the reverse edge is implied
  int32_t j;
  int32_t s[3];
};

inline bool shift_before(const int32_t* a, const int32_t* b) {
  for (int k = 0; k < 3; ++k)
    if (a[k] != b[k]) return a[k] < b[k];
  return false;
}

// A vector whose new elements are not set to zero.
class HalfBuffer {
 public:
  HalfBuffer() = default;
  HalfBuffer(HalfBuffer&& other) noexcept : data(other.data), size(other.size), capacity_(other.capacity_) {
    other.data = nullptr;
    other.size = other.capacity_ = 0;
  }
  HalfBuffer(const HalfBuffer&) = delete;
  HalfBuffer& operator=(const HalfBuffer&) = delete;
  ~HalfBuffer() { std::free(data); }

  void make_room(size_t more) {
    if (size + more <= capacity_) return;
    const size_t wanted = std::max(size + more, 2 * capacity_ + 1024);
    void* grown = std::realloc(data, wanted * sizeof(Half));
    if (!grown) throw std::bad_alloc();
    data = static_cast<Half*>(grown);
    capacity_ = wanted;
  }

  Half* data = nullptr;
  size_t size = 0;

 private:
  size_t capacity_ = 0;
};

// Three arrays, padded so that a vector register may be loaded anywhere below `n`; padding lies far away.
struct Points {
  static constexpr int kPad = 8;
  std::vector<double> x, y, z;
  int64_t n = 0;

  void resize(int64_t count) {
    n = count;
    for (auto* v : {&x, &y, &z}) {
      if (static_cast<int64_t>(v->size()) < n + kPad) v->resize(n + kPad);
      std::fill(v->begin() + n, v->begin() + n + kPad, 1e150);
    }
  }
};

// Bit m of the result: point `start + m` plus (ax, ay, az) is nearer to the origin than the root of r2; m < count <= 64.
inline uint64_t near_points(const Points& p, int64_t start, int64_t count, double ax, double ay, double az, double r2) {
  const double *x = p.x.data() + start, *y = p.y.data() + start, *z = p.z.data() + start;
  uint64_t mask = 0;
#if defined(__AVX512F__)
  const __m512d vx = _mm512_set1_pd(ax), vy = _mm512_set1_pd(ay), vz = _mm512_set1_pd(az), vr = _mm512_set1_pd(r2);
  for (int64_t m = 0; m < count; m += 8) {
    const __m512d dx = _mm512_add_pd(_mm512_loadu_pd(x + m), vx), dy = _mm512_add_pd(_mm512_loadu_pd(y + m), vy),
                  dz = _mm512_add_pd(_mm512_loadu_pd(z + m), vz);
    const __m512d d2 = _mm512_fmadd_pd(dx, dx, _mm512_fmadd_pd(dy, dy, _mm512_mul_pd(dz, dz)));
    mask |= static_cast<uint64_t>(_mm512_cmp_pd_mask(d2, vr, _CMP_LT_OQ)) << m;
  }
#elif defined(__AVX2__)
  const __m256d vx = _mm256_set1_pd(ax), vy = _mm256_set1_pd(ay), vz = _mm256_set1_pd(az), vr = _mm256_set1_pd(r2);
  for (int64_t m = 0; m < count; m += 4) {
    const __m256d dx = _mm256_add_pd(_mm256_loadu_pd(x + m), vx), dy = _mm256_add_pd(_mm256_loadu_pd(y + m), vy),
                  dz = _mm256_add_pd(_mm256_loadu_pd(z + m), vz);
    const __m256d d2 = _mm256_fmadd_pd(dx, dx, _mm256_fmadd_pd(dy, dy, _mm256_mul_pd(dz, dz)));
    mask |= static_cast<uint64_t>(_mm256_movemask_pd(_mm256_cmp_pd(d2, vr, _CMP_LT_OQ))) << m;
  }
#else
  for (int64_t m = 0; m < count; ++m) {
    const double dx = x[m] + ax, dy = y[m] + ay, dz = z[m] + az;
    mask |= static_cast<uint64_t>(dx * dx + dy * dy + dz * dz < r2) << m;
  }
#endif
  return count < 64 ? mask & ((uint64_t{1} << count) - 1) : mask;
}

}  // namespace atomsieve
