#include "ops/memory_cpu.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define SEQKERN_KEEPS_MEMORY
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>
#endif

namespace seqkern::ops {

namespace {

#if defined(SEQKERN_KEEPS_MEMORY)

// Smaller tensors are left to malloc. It gives what is free at the end of its heap back to the
// system once that has twice this size, and maps memory for each tensor that large: at first, and
// then in each of a layer's calls.
constexpr size_t kLeast = size_t{64} << 10;
// These begin with a huge page: one fault for 2 MiB, where the system gives them.
constexpr size_t kLarge = size_t{512} << 10, kPage = size_t{2} << 20;
// What is kept at most when nothing uses it.
constexpr size_t kMostKept = size_t{256} << 20, kMostBlocks = 1024;

size_t rounded(size_t size) {
  const size_t grain = size < kLarge ? size_t{4} << 10 : size_t{64} << 10;
  return (size + grain - 1) / grain * grain;
}

struct Block {
  void* data;
  size_t size;
};

void* map(size_t size) {
  if (size < kLarge) {
    void* const data =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? nullptr : data;
  }
  void* const all =
      mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(all);
  const uintptr_t aligned = (begin + kPage - 1) / kPage * kPage;
  if (aligned > begin) munmap(all, aligned - begin);
  if (const uintptr_t after = begin + kPage - aligned; after > 0) {
    munmap(reinterpret_cast<void*>(aligned + size), after);
  }
  void* const data = reinterpret_cast<void*>(aligned);
  // A hint: where it is refused nothing is lost.
  madvise(data, size, MADV_HUGEPAGE);
  return data;
}

// The blocks in nobody's use, the latest last. A thread that finds another at work here goes by
// the system instead of waiting: what a process that forks leaves locked is locked for its child.
class Kept {
 public:
  // A block of at least `size` bytes, and not of half as many again; {} where there is none.
  Block take(size_t size) {
    if (lock_.test_and_set(std::memory_order_acquire)) return {};
    size_t best = blocks_.size();
    for (size_t i = blocks_.size(); i-- > 0;) {
      if (blocks_[i].size < size || blocks_[i].size > size + size / 2) continue;
      if (best == blocks_.size() || blocks_[i].size < blocks_[best].size) best = i;
      if (blocks_[best].size == size) break;
    }
    Block found{};
    if (best < blocks_.size()) {
      found = blocks_[best];
      blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(best));
      total_ -= found.size;
    }
    lock_.clear(std::memory_order_release);
    return found;
  }

  // Keeps a block, and gives the oldest ones back to the system where there are too many.
  void put(Block block) {
    if (block.size > kMostKept || lock_.test_and_set(std::memory_order_acquire)) {
      munmap(block.data, block.size);
      return;
    }
    blocks_.push_back(block);
    total_ += block.size;
    release(kMostKept);
    lock_.clear(std::memory_order_release);
  }

  void put_all_back() {
    if (lock_.test_and_set(std::memory_order_acquire)) return;
    release(0);
    lock_.clear(std::memory_order_release);
  }

 private:
  void release(size_t most) {
    size_t n = 0;
    for (; total_ > most || blocks_.size() - n > kMostBlocks; ++n) {
      munmap(blocks_[n].data, blocks_[n].size);
      total_ -= blocks_[n].size;
    }
    blocks_.erase(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(n));
  }

  std::atomic_flag lock_;
  std::vector<Block> blocks_;
  size_t total_ = 0;
};

// Never destroyed: tensors may outlive it.
Kept& kept() {
  static Kept* const blocks = new Kept;
  return *blocks;
}

void give_back(void* context) {
  Block* const block = static_cast<Block*>(context);
  c10::profiledCPUMemoryReporter().Delete(block->data);
  kept().put(*block);
  delete block;
}

class KeptMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    // Also what a storage is resized to comes here.
    if (n < kLeast) return c10::GetCPUAllocator()->allocate(n);
    const size_t size = rounded(n);
    Block block = kept().take(size);
    if (!block.data) block = {map(size), size};
    if (!block.data) {
      kept().put_all_back();
      block = {map(size), size};
    }
    // Its error says how much was wanted.
    if (!block.data) return c10::GetCPUAllocator()->allocate(n);
    c10::profiledCPUMemoryReporter().New(block.data, n);
    return {block.data, new Block(block), &give_back, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t n) const override {
    default_copy_data(to, from, n);
  }
};

// What is not touched takes no memory.
constexpr size_t kArena = size_t{1} << 20, kLine = 64;

struct ArenaMemory {
  std::unique_ptr<char, decltype(&std::free)> data{
      static_cast<char*>(std::aligned_alloc(kLine, kArena)), &std::free};
  bool taken = false;
};

thread_local ArenaMemory arena_memory;

#endif

}  // namespace

#if defined(SEQKERN_KEEPS_MEMORY)
Arena::Arena() : mine_(!std::exchange(arena_memory.taken, true)) {}

Arena::~Arena() {
  if (mine_) arena_memory.taken = false;
}

void* Arena::take(size_t bytes) {
  const size_t size = (bytes + kLine - 1) / kLine * kLine;
  if (!mine_ || !arena_memory.data || size > kArena - used_) return nullptr;
  return arena_memory.data.get() + std::exchange(used_, used_ + size);
}
#else
// Every buffer is one that a sanitizer knows.
Arena::Arena() : mine_(false) {}
Arena::~Arena() = default;
void* Arena::take(size_t) { return nullptr; }
#endif

at::Tensor empty_cpu(at::IntArrayRef sizes, const at::TensorOptions& options) {
#if defined(SEQKERN_KEEPS_MEMORY)
  const auto dtype = c10::typeMetaToScalarType(options.dtype());
  if (c10::multiply_integers(sizes) * c10::elementSize(dtype) >= kLeast) {
    static KeptMemory* const memory = new KeptMemory;
    return at::detail::empty_generic(sizes, memory, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                     dtype, std::nullopt);
  }
#endif
  // Past the dispatcher: a small layer's buffers would take longer there than to fill.
  return at::detail::empty_cpu(sizes, options);
}

}  // namespace seqkern::ops
