// Large blocks of torch's CPU tensors: each is mapped by itself, and kept for reuse once it is freed.
//
// No more bytes are ever mapped than were in use at one time. A request takes the free block of the nearest
// size and moves its pages to a mapping as large as it needs (mremap), so that packs of varying size leave no
// holes, and pages that were touched once are not touched for the first time again.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

constexpr size_t kLarge = 128 << 10;      // bytes from which a block comes from the pool
constexpr size_t kHugePages = 32 << 20;   // bytes from which pages of 2 MiB are asked for
constexpr size_t kWaste = 16;             // a block a sixteenth larger than asked for serves as it is

size_t whole_pages(size_t size) {
    static const size_t page = sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

class BlockPool final : public c10::Allocator {
public:
    explicit BlockPool(c10::Allocator *small) : small_(small) {}

    c10::DataPtr allocate(size_t size) override {
        if (size < kLarge) return small_->allocate(size);
        void *block = take(whole_pages(size));
        return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

    void copy_data(void *to, const void *from, size_t size) const override { default_copy_data(to, from, size); }

    size_t mapped() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return mapped_;
    }

private:
    using FreeBlocks = std::multimap<size_t, void *>;

    static void give_back(void *block);

    bool put_back(void *block) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = sizes_.find(block);
        if (found == sizes_.end()) return false;
        in_use_ -= found->second;
        free_.emplace(found->second, block);
        sizes_.erase(found);
        return true;
    }

    void *take(size_t size) {
        const std::lock_guard<std::mutex> lock(mutex_);
        void *block = nullptr;
        size_t had = 0;
        if (const auto nearest = find_nearest(size); nearest != free_.end()) {
            had = nearest->first, block = nearest->second;
            free_.erase(nearest);
        }
        if (had > size && had - size <= size / kWaste) size = had;
        most_in_use_ = std::max(most_in_use_, in_use_ + size);
        while (!free_.empty() && mapped_ - had + size > most_in_use_) unmap_largest();
        block = resized(block, had, size);
        mapped_ += size - had;
        in_use_ += size;
        sizes_.emplace(block, size);
        return block;
    }

    // The smallest free block that serves as it is, else the largest of those that are too small: growing costs
    // fewer first touches than giving pages back, of which some other block is short later.
    FreeBlocks::iterator find_nearest(size_t size) {
        const auto at_least = free_.lower_bound(size);
        const bool serves = at_least != free_.end() && at_least->first - size <= size / kWaste;
        return serves || at_least == free_.begin() ? at_least : std::prev(at_least);
    }

    void unmap_largest() {
        const auto largest = std::prev(free_.end());
        munmap(largest->second, largest->first);
        mapped_ -= largest->first;
        free_.erase(largest);
    }

    void *resized(void *block, size_t had, size_t size) {
        if (had == size) return block;
        void *found = block ? mremap(block, had, size, MREMAP_MAYMOVE)
                            : mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED && block) {
            munmap(block, had);
            mapped_ -= had;
        }
        TORCH_CHECK(found != MAP_FAILED, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", size,
                    " bytes.");
        if (size >= kHugePages) madvise(found, size, MADV_HUGEPAGE);
        return found;
    }

    c10::Allocator *small_;
    std::mutex mutex_;
    std::unordered_map<void *, size_t> sizes_;  // of the blocks in use
    FreeBlocks free_;
    size_t mapped_ = 0, in_use_ = 0, most_in_use_ = 0;
};

BlockPool *pool = nullptr;  // never destroyed: tensors may outlive everything else
c10::Allocator *before = nullptr;

void BlockPool::give_back(void *block) {
    if (!pool->put_back(block)) before->raw_deleter()(block);
}

}  // namespace

extern "C" {

void install_block_pool() {
    if (pool) return;
    before = c10::GetCPUAllocator();
    pool = new BlockPool(before);
    c10::SetCPUAllocator(pool);
}

int64_t mapped_bytes() { return pool ? pool->mapped() : 0; }
}
