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

}  // namespace
