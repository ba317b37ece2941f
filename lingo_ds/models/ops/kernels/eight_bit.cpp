// Maps in 8 bits, blocks of whole numbers with a scale each: made of fp32 entries, and multiplied out again.

#include <cstring>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 256;  // entries, as in traffic.py
constexpr float LARGEST = 127;

template <class Entry, class Cast>
void unpack(const int8_t *values, const float *scales, Entry *out, int64_t blocks, int64_t threads, Cast cast) {
    in_parts(blocks, BLOCK, threads, [=](int64_t first, int64_t end) {
        for (int64_t block = first; block < end; block++) {
            const int8_t *from = values + block * BLOCK;
            Entry *__restrict to = out + block * BLOCK;
            const float scale = scales[block];
            for (int64_t n = 0; n < BLOCK; n++) to[n] = cast(from[n] * scale);
        }
    });
}

}  // namespace

extern "C" {

// A block of zeros gets the scale 0, one in which an entry is no finite number no finite scale.
void pack_fp32(const float *entries, int8_t *values, float *scales, int64_t blocks, int64_t threads) {
    in_parts(blocks, BLOCK, threads, [=](int64_t first, int64_t end) {
        for (int64_t block = first; block < end; block++) {
            const float *from = entries + block * BLOCK;
            int8_t *__restrict to = values + block * BLOCK;
            Vector most{}, broken{};
            by_vector(0, BLOCK, [&](int64_t n, int64_t left) {
                const Vector x = load(from + n, left), size = x < 0.0f ? -x : x;
                most = size > most ? size : most;
                broken += x * 0.0f;
            });
            const float scale = scales[block] = highest(most) / LARGEST + total(broken);
            const float by = scale > 0 ? scale : 1, rounding = 12582912;  // 1.5 * 2^23: ties to even
            for (int64_t n = 0; n < BLOCK; n++)
                to[n] = static_cast<int8_t>(static_cast<int32_t>(from[n] / by + rounding - rounding));
        }
    });
}

void unpack_fp32(const int8_t *values, const float *scales, float *out, int64_t blocks, int64_t threads) {
    unpack(values, scales, out, blocks, threads, [](float x) { return x; });
}

// to the nearest bf16, ties to even, and what is no number to one that stays so
void unpack_bf16(const int8_t *values, const float *scales, uint16_t *out, int64_t blocks, int64_t threads) {
    unpack(values, scales, out, blocks, threads, [](float x) {
        if (x != x) return static_cast<uint16_t>(0x7fc0);
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    });
}
}
