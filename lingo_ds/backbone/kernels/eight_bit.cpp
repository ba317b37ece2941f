// Maps in 8 bits, multiplied out: blocks of whole numbers, each with its scale.

#include <cstring>

#include "threads.h"

namespace {

constexpr int64_t BLOCK = 256;  // entries, as in traffic.py

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
