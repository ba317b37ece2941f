// What a processor computes at once: vectors of fp32, and what is done with them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

Vector &vector_at(float *place) { return *reinterpret_cast<Vector *>(place); }
int64_t whole(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// The next LANES entries, or as many as there are, and zeros.
Vector load(const float *from, int64_t count) {
    Vector x{};
    std::memcpy(&x, from, std::min(count, LANES) * sizeof(float));
    return x;
}
void store(float *to, int64_t count, Vector x) { std::memcpy(to, &x, std::min(count, LANES) * sizeof(float)); }

// work(place, entries left) for each vector of [first, end); whole ones know that they are
template <class Work>
void by_vector(int64_t first, int64_t end, Work work) {
    int64_t place = first;
    for (; place + LANES <= end; place += LANES) work(place, LANES);
    if (place < end) work(place, end - place);
}

// Each lane with the one whose number differs in this bit.
Vector swapped(Vector x, int64_t bit) {
    Integers from;
    for (int32_t lane = 0; lane < LANES; lane++) from[lane] = lane ^ static_cast<int32_t>(bit);
    return __builtin_shuffle(x, from);
}
float total(Vector x) {
    for (int64_t bit = LANES / 2; bit; bit /= 2) x += swapped(x, bit);
    return x[0];
}
float highest(Vector x) {
    for (int64_t bit = LANES / 2; bit; bit /= 2) {
        const Vector other = swapped(x, bit);
        x = other > x ? other : x;
    }
    return x[0];
}

// LANES rows become LANES columns: what differs in a bit of its row and of its lane changes places, bit by bit.
void transpose(Vector (&rows)[LANES]) {
#pragma GCC unroll 4
    for (int64_t bit = 1; bit < LANES; bit *= 2) {
        Integers low, high;
        for (int32_t lane = 0; lane < LANES; lane++) {
            low[lane] = lane & bit ? LANES + lane - bit : lane;
            high[lane] = lane & bit ? LANES + lane : lane + bit;
        }
#pragma GCC unroll 16
        for (int64_t row = 0; row < LANES; row++) {
            if (row & bit) continue;
            const Vector upper = rows[row], lower = rows[row + bit];
            rows[row] = __builtin_shuffle(upper, lower, low);
            rows[row + bit] = __builtin_shuffle(upper, lower, high);
        }
    }
}

// e^x for x <= 0, to 2 units in the last place: 2^n times a polynomial on [-ln(2) / 2, ln(2) / 2] (Cephes' expf).
Vector exponential(Vector x) {
    const Vector lowest = Vector{} - 87.0f, rounding = Vector{} + 12582912.0f;  // 1.5 * 2^23
    x = x < lowest ? lowest : x;
    const Vector rounded = x * 1.44269504f + rounding, n = rounded - rounding;
    const Vector r = x - n * 0.693145752f - n * 1.42860677e-6f;
    Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Integers power = (reinterpret_cast<const Integers &>(rounded) + 127) << 23;
    return p * reinterpret_cast<const Vector &>(power);
}

}  // namespace
