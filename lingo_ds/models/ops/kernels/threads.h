#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// work(n) for n in [0, count), each on a thread of its own, the last of them on this one.
template <class Work>
void on_threads(int64_t count, Work work) {
    std::vector<std::thread> others;
    for (int64_t n = 0; n + 1 < count; n++) others.emplace_back(work, n);
    work(count - 1);
    for (auto &other : others) other.join();
}

constexpr int64_t WORTH_A_THREAD = 1 << 16;  // entries

// work(first, end) on parts of [0, count), of `width` entries each
template <class Work>
void in_parts(int64_t count, int64_t width, int64_t threads, Work work) {
    const int64_t parts = std::clamp<int64_t>(count * width / WORTH_A_THREAD, 1, threads);
    on_threads(parts, [&](int64_t n) { work(count * n / parts, count * (n + 1) / parts); });
}

}  // namespace
