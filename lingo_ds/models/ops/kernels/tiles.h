// Products of small matrices in fp32, by tiles that stay in vector registers; one thread.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "vectors.h"

namespace {

// A tile: ROWS by VECTORS * LANES sums, with VECTORS + 1 registers beside.
constexpr int64_t ROWS = 6, VECTORS = LANES == 16 ? 4 : 2;

struct Rows {  // a matrix; row r begins at data + r * stride, its entries lie next to each other
    float *data;
    int64_t stride;
    float *operator[](int64_t row) const { return data + row * stride; }
    Rows from(int64_t row, int64_t column) const { return {(*this)[row] + column, stride}; }
};

struct Buffer : Rows {  // rows that begin with a whole cache line
    Buffer(int64_t rows, int64_t width) : Rows{nullptr, whole(width)} {
        data = static_cast<float *>(std::aligned_alloc(64, (rows * stride * sizeof(float) + 63) / 64 * 64));
        if (!data) std::abort();
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() { std::free(data); }
};

struct Strided {  // a matrix whose entry (m, k) is data[m * by_row + k * by_column]
    const float *data;
    int64_t by_row, by_column;
};

// c = a b, or c += a b, for COUNT rows and WIDTH vectors.
template <int64_t COUNT, int64_t WIDTH>
void tile(Strided a, Rows b, Rows c, int64_t depth, bool add) {
    Vector sum[COUNT][WIDTH];
    for (int64_t m = 0; m < COUNT; m++)
        for (int64_t n = 0; n < WIDTH; n++) sum[m][n] = add ? vector_at(c[m] + n * LANES) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
        Vector row[WIDTH];
        for (int64_t n = 0; n < WIDTH; n++) row[n] = vector_at(b[k] + n * LANES);
        for (int64_t m = 0; m < COUNT; m++)
            for (int64_t n = 0; n < WIDTH; n++) sum[m][n] += a.data[m * a.by_row + k * a.by_column] * row[n];
    }
    for (int64_t m = 0; m < COUNT; m++)
        for (int64_t n = 0; n < WIDTH; n++) vector_at(c[m] + n * LANES) = sum[m][n];
}

template <int64_t COUNT>
void strip(Strided a, Rows b, Rows c, int64_t depth, int64_t width, bool add) {
    int64_t n = 0;
    for (; n + VECTORS * LANES <= width; n += VECTORS * LANES)
        tile<COUNT, VECTORS>(a, b.from(0, n), c.from(0, n), depth, add);
    switch ((width - n) / LANES) {
        case 3: return tile<COUNT, 3>(a, b.from(0, n), c.from(0, n), depth, add);
        case 2: return tile<COUNT, 2>(a, b.from(0, n), c.from(0, n), depth, add);
        case 1: return tile<COUNT, 1>(a, b.from(0, n), c.from(0, n), depth, add);
    }
}

// c = a b, or c += a b; a is (rows, depth), b is (depth, width) and the width is one of whole vectors.
void product(Strided a, Rows b, Rows c, int64_t rows, int64_t depth, int64_t width, bool add) {
    int64_t m = 0;
    auto below = [&] { return Strided{a.data + m * a.by_row, a.by_row, a.by_column}; };
    for (; m + ROWS <= rows; m += ROWS) strip<ROWS>(below(), b, c.from(m, 0), depth, width, add);
    for (; m + 2 <= rows; m += 2) strip<2>(below(), b, c.from(m, 0), depth, width, add);
    if (m < rows) strip<1>(below(), b, c.from(m, 0), depth, width, add);
}

}  // namespace
