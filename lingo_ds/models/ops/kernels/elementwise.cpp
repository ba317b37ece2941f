// What a decoder layer does to every entry between its products, in fp32: each tensor is read once and written once.

#include <cmath>

#include "threads.h"
#include "vectors.h"

namespace {

Vector sigmoid(Vector x) {
    const Vector small = exponential(x < 0.0f ? x : -x), whole = 1.0f / (1.0f + small);
    return x < 0.0f ? small * whole : whole;
}

}  // namespace

extern "C" {

// out = x weight / rms(x); scales (rows) are 1 / rms
void rms_norm(const float *x, const float *weight, float *out, float *scales, int64_t rows, int64_t width, float eps,
              int64_t threads) {
    in_parts(rows, width, threads, [=](int64_t first, int64_t end) {
        for (int64_t row = first; row < end; row++) {
            const float *from = x + row * width;
            float *to = out + row * width;
            Vector squares{};
            by_vector(0, width, [&](int64_t n, int64_t left) {
                const Vector value = load(from + n, left);
                squares += value * value;
            });
            const float scale = scales[row] = 1 / std::sqrt(total(squares) / width + eps);
            by_vector(0, width, [&](int64_t n, int64_t left) {
                store(to + n, left, load(from + n, left) * scale * load(weight + n, left));
            });
        }
    });
}

void rms_norm_backward(const float *x, const float *weight, const float *scales, const float *of_out, float *of_x,
                       int64_t rows, int64_t width, int64_t threads) {
    in_parts(rows, width, threads, [=](int64_t first, int64_t end) {
        for (int64_t row = first; row < end; row++) {
            const float *from = x + row * width, *gradient = of_out + row * width;
            float *to = of_x + row * width;
            Vector along{};
            by_vector(0, width, [&](int64_t n, int64_t left) {
                along += load(gradient + n, left) * load(weight + n, left) * load(from + n, left);
            });
            const float scale = scales[row], back = total(along) * scale * scale * scale / width;
            by_vector(0, width, [&](int64_t n, int64_t left) {
                const Vector straight = load(gradient + n, left) * load(weight + n, left) * scale;
                store(to + n, left, straight - load(from + n, left) * back);
            });
        }
    });
}

// out = silu(gate) up
void gated(const float *gate, const float *up, float *out, int64_t count, int64_t threads) {
    in_parts(count, 1, threads, [=](int64_t first, int64_t end) {
        by_vector(first, end, [&](int64_t n, int64_t left) {
            const Vector x = load(gate + n, left);
            store(out + n, left, x * sigmoid(x) * load(up + n, left));
        });
    });
}

void gated_backward(const float *gate, const float *up, const float *of_out, float *of_gate, float *of_up,
                    int64_t count, int64_t threads) {
    in_parts(count, 1, threads, [=](int64_t first, int64_t end) {
        by_vector(first, end, [&](int64_t n, int64_t left) {
            const Vector x = load(gate + n, left), s = sigmoid(x), gradient = load(of_out + n, left);
            store(of_up + n, left, gradient * x * s);
            store(of_gate + n, left, gradient * load(up + n, left) * s * (1.0f + x * (1.0f - s)));
        });
    });
}
}
