// Fibers, their schedules, and what they wait for. Compiled without ThreadSanitizer's
// instrumentation even where the kernels have it: only what kernels do is looked at.
#include "cuda_host/runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SEQKERN_HOST_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

#if !defined(__x86_64__)
#error "tests/cuda_host needs an x86-64: its fibers switch in assembly"
#endif

// Keeps what the calling convention keeps, on the stack that is left.
extern "C" void seqkern_switch_stacks(void** from, void* to);
asm(R"(
.text
.globl seqkern_switch_stacks
.hidden seqkern_switch_stacks
.type seqkern_switch_stacks, @function
seqkern_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size seqkern_switch_stacks, .-seqkern_switch_stacks
)");

namespace seqkern::cuda {

namespace host {

Thread* current = nullptr;

namespace {

// An A100's limits with few multiprocessors, so that small grids fill it.
constexpr DeviceProperties kDefaultDevice{.major = 8,
                                          .minor = 0,
                                          .multiprocessors = 8,
                                          .threads_per_multiprocessor = 2048,
                                          .blocks_per_multiprocessor = 32,
                                          .registers_per_multiprocessor = 65536,
                                          .shared_per_multiprocessor = 164 << 10,
                                          .shared_per_block = 48 << 10,
                                          .shared_per_block_optin = 163 << 10,
                                          .l2_bytes = 40 << 20,
                                          .cooperative_launch = true};

DeviceProperties device = kDefaultDevice;

// Blocks of an ordinary launch that are under way at once.
constexpr int64_t kBlocksAtOnce = 4;
constexpr size_t kDynamicAlignment = 128, kLeastAlignment = 16;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

// What the runtime does in a fiber's name is no access of its thread.
struct Unseen {
#if defined(SEQKERN_HOST_THREAD_SANITIZER)
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
#endif
};

void order_after(void* object) {
#if defined(SEQKERN_HOST_THREAD_SANITIZER)
  __tsan_acquire(object);
#else
  (void)object;
#endif
}
void order_before(void* object) {
#if defined(SEQKERN_HOST_THREAD_SANITIZER)
  __tsan_release(object);
#else
  (void)object;
#endif
}

// A meeting of some lanes of a warp. What ThreadSanitizer's edges hang on are two addresses, here
// and in Block, as the first threads of the next meeting may come before the last have left this
// one.
struct Meeting {
  uint32_t mask, arrived = 0;
  Combine combine = nullptr;
  void* lanes[32] = {};
  Where where;
  unsigned generation = 0;
  char edges[2];
};

struct SharedVariable {
  const void* key;
  void* memory;
  size_t bytes;
};

struct Block {
  int first = 0, alive = 0, arrived = 0;  // fibers
  unsigned generation = 0;
  int sums[2] = {};
  char edges[2];
  Where where;
  void* dynamic = nullptr;
  size_t static_bytes = 0;
  std::vector<SharedVariable> variables;
  std::vector<std::vector<std::unique_ptr<Meeting>>> warps;  // a meeting for each mask in use
};

struct Copy {
  void* to;
  const void* from;
  int bytes, valid;
  unsigned group;
};

enum class State { Ready, Barrier, Lanes, Done };

struct Fiber : Thread {
  int index = 0;
  State state = State::Done;
  bool spun = false;
  Where where;
  Block* owner = nullptr;
  void* sp = nullptr;
  char* stack = nullptr;
  std::vector<Copy> copies;
  unsigned group = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
#if defined(SEQKERN_HOST_THREAD_SANITIZER)
  void* tsan = nullptr;
  int64_t tsan_launch = 0;
#endif
};

class Bits {
 public:
  void resize(int n) { words_.assign((n + 63) / 64, 0); }
  void set(int i) { words_[i >> 6] |= uint64_t{1} << (i & 63); }
  void reset(int i) { words_[i >> 6] &= ~(uint64_t{1} << (i & 63)); }
  bool test(int i) const { return words_[i >> 6] >> (i & 63) & 1; }
  // The first one from i on, or -1.
  int next(int i) const {
    size_t w = i >> 6;
    if (w >= words_.size()) return -1;
    uint64_t word = words_[w] & ~uint64_t{0} << (i & 63);
    while (word == 0) {
      if (++w == words_.size()) return -1;
      word = words_[w];
    }
    return static_cast<int>(w * 64) + std::countr_zero(word);
  }
  // The last one up to i, or -1.
  int previous(int i) const {
    if (i < 0) return -1;
    size_t w = i >> 6;
    uint64_t word = words_[w] & ~uint64_t{0} >> (63 - (i & 63));
    while (word == 0) {
      if (w-- == 0) return -1;
      word = words_[w];
    }
    return static_cast<int>(w * 64) + 63 - std::countl_zero(word);
  }
  bool any() const { return next(0) >= 0; }
  void take(Bits& from) {
    for (size_t w = 0; w < words_.size(); ++w) {
      words_[w] |= from.words_[w];
      from.words_[w] = 0;
    }
  }

 private:
  std::vector<uint64_t> words_;
};

std::mutex one_launch;
Schedule schedule = Schedule::Forward;
uint64_t random_state = 1;
Counts counts{};
std::map<const void*, size_t> allowed;
std::vector<std::unique_ptr<Fiber>> fibers;  // kept between launches, with their stacks

uint64_t draw() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// The launch under way.
struct Run {
  const Launch* launch;
  int64_t number = 0;  // of the launch
  int block_threads = 0, slots = 0;
  std::vector<unsigned> order;  // of the blocks
  size_t next_block = 0;
  std::vector<Block> blocks;  // [slots]
  Bits ready, spinning;
  uint64_t progress = 0, progress_seen = ~uint64_t{0};
  int last = 0;            // fiber that had the last turn
  int favourite = 0;       // slot
  Block* ended = nullptr;  // all its threads have returned
  std::string error;
  void* main_sp = nullptr;
  char start_edge, end_edge;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
#endif
#if defined(SEQKERN_HOST_THREAD_SANITIZER)
  void* tsan = nullptr;
#endif
};
Run* run_ = nullptr;

Fiber& self() { return *static_cast<Fiber*>(current); }

bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string place(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

// ---- Switching ----

void enter();

// To a fiber, or to run() where `to` is null; from run() where `from` is.
void switch_to(Fiber* from, Fiber* to, bool last = false) {
  Run& r = *run_;
  ++counts.switches;
  void* const sp = to ? to->sp : r.main_sp;
  current = to;
  if (to) r.last = to->index;
#if defined(__SANITIZE_ADDRESS__)
  void** const fake = last ? nullptr : from ? &from->fake_stack : &r.fake_stack;
  __sanitizer_start_switch_fiber(fake, to ? to->stack : r.main_stack,
                                 to ? kStackBytes : r.main_stack_bytes);
#else
  (void)last;
#endif
#if defined(SEQKERN_HOST_THREAD_SANITIZER)
  __tsan_switch_to_fiber(to ? to->tsan : r.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  seqkern_switch_stacks(from ? &from->sp : &r.main_sp, sp);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from ? from->fake_stack : r.fake_stack, nullptr, nullptr);
#endif
}

// The thread's last turn: run() goes on.
[[noreturn]] void leave(const std::string& error = {}) {
  run_->error = error;
  order_before(&run_->end_edge);
  switch_to(&self(), nullptr, true);
  __builtin_unreachable();
}

// Its stack, and for ThreadSanitizer its identity.
void equip(Fiber& fiber) {
#if defined(SEQKERN_HOST_THREAD_SANITIZER)
  // In a launch, new for each CUDA thread: a stack or an identity taken over would look like a race
  // or hide one.
  if (fiber.tsan_launch != run_->number) {
    fiber.tsan_launch = run_->number;
    if (!fiber.tsan) fiber.tsan = __tsan_create_fiber(0);
    if (!fiber.stack) fiber.stack = static_cast<char*>(std::malloc(kStackBytes));
    return;
  }
  std::free(fiber.stack);
  fiber.stack = static_cast<char*>(std::malloc(kStackBytes));
  __tsan_destroy_fiber(fiber.tsan);
  fiber.tsan = __tsan_create_fiber(0);
#else
  if (!fiber.stack) {
    void* const memory = mmap(nullptr, kStackBytes + 4096, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, 4096, PROT_NONE) != 0) {
      throw std::runtime_error("cuda-host: no memory for a stack");
    }
    fiber.stack = static_cast<char*>(memory) + 4096;
  }
#endif
}

void prepare(Fiber& fiber) {
  equip(fiber);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, kStackBytes);
  fiber.fake_stack = nullptr;
#endif
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;  // in place of a return address of enter: the ABI's alignment
  *--top = reinterpret_cast<void*>(&enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.sp = top;
}

// ---- Whose turn it is ----

std::string deadlock() {
  // What threads wait for: how many, and the first of them.
  std::map<std::string, std::pair<int, const Fiber*>> waits;
  for (int i = 0; i < run_->slots * run_->block_threads; ++i) {
    const Fiber& fiber = *fibers[i];
    if (fiber.state == State::Done) continue;
    const char* const what = fiber.state == State::Barrier ? "at a barrier of the block, "
                             : fiber.state == State::Lanes ? "for other lanes, "
                                                           : "in spin_until, ";
    auto& entry = waits[what + place(fiber.where)];
    if (entry.first++ == 0) entry.second = &fiber;
  }
  std::ostringstream text;
  text << "deadlock:";
  for (const auto& [what, entry] : waits) {
    const auto& [count, fiber] = entry;
    text << "\n  " << count << (count == 1 ? " thread waits " : " threads wait ") << what
         << ", the first of them thread " << fiber->index % run_->block_threads << " of block ("
         << fiber->block.x << ", " << fiber->block.y << ", " << fiber->block.z << ")";
  }
  return text.str();
}

// Those that spin look again. Where nobody has done anything since they last did, nobody will.
void wake_spinning() {
  Run& r = *run_;
  if (r.progress == r.progress_seen) return;
  r.progress_seen = r.progress;
  r.ready.take(r.spinning);
}

// The fiber that runs next, or -1 where none can.
int choose() {
  Run& r = *run_;
  const int n = r.slots * r.block_threads;
  switch (schedule) {
    case Schedule::Forward: {
      const int after = r.ready.next(r.last + 1);
      if (after >= 0) return after;
      wake_spinning();
      return r.ready.next(0);
    }
    case Schedule::Reverse: {
      const int before = r.ready.previous(r.last - 1);
      if (before >= 0) return before;
      wake_spinning();
      return r.ready.previous(n - 1);
    }
    case Schedule::Greedy:
      if (r.ready.test(r.last)) return r.last;
      if (!r.ready.any()) wake_spinning();
      return r.ready.next(0);
    case Schedule::Random: {
      const uint64_t dice = draw();
      if (dice % 16 == 0 || !r.ready.any()) wake_spinning();
      if (dice / 16 % 64 == 0) r.favourite = static_cast<int>(draw() % r.slots);
      if (dice / 1024 % 4 == 0 && r.ready.test(r.last)) return r.last;
      // Most often in the favourite block, so that it runs ahead of the others.
      const bool anywhere = dice / 4096 % 4 == 0;
      const int high = static_cast<int>(dice >> 33);
      const int start =
          anywhere ? high % n : r.favourite * r.block_threads + high % r.block_threads;
      const int found = r.ready.next(start);
      return found >= 0 ? found : r.ready.next(0);
    }
  }
  return -1;
}

void give_turn() {
  Fiber& me = self();
  const int chosen = choose();
  if (chosen < 0) leave(deadlock());
  Fiber& to = *fibers[chosen];
  if (!to.waiting) ++run_->progress;
  if (&to != &me) switch_to(&me, &to);
}

// ---- Blocks ----

// Exactly the size that was asked for, and NaN in every floating-point type.
void* allocate_shared(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, kLeastAlignment), bytes) != 0) std::abort();
  std::memset(memory, 0xff, bytes);
  return memory;
}

void free_shared(Block& block) {
  std::free(block.dynamic);
  for (const SharedVariable& variable : block.variables) std::free(variable.memory);
  block.dynamic = nullptr;
  block.variables.clear();
  block.static_bytes = 0;
}

void start_block(int slot) {
  const Unseen unseen;
  Run& r = *run_;
  const Launch& launch = *r.launch;
  const unsigned index = r.order[r.next_block++];
  Block& block = r.blocks[slot];
  block.first = slot * r.block_threads;
  block.alive = r.block_threads;
  block.sums[0] = block.sums[1] = 0;
  block.warps.clear();
  block.warps.resize((r.block_threads + 31) / 32);
  if (launch.shared_bytes > 0) {
    block.dynamic = allocate_shared(launch.shared_bytes, kDynamicAlignment);
  }
  for (int i = 0; i < r.block_threads; ++i) {
    Fiber& fiber = *fibers[block.first + i];
    const dim3 b = launch.block, g = launch.grid;
    const unsigned t = i;
    fiber.thread = {t % b.x, t / b.x % b.y, t / b.x / b.y};
    fiber.block = {index % g.x, index / g.x % g.y, index / g.x / g.y};
    fiber.block_dim = b;
    fiber.grid_dim = g;
    fiber.waiting = fiber.spun = false;
    fiber.state = State::Ready;
    fiber.owner = &block;
    fiber.copies.clear();
    fiber.group = 0;
    prepare(fiber);
    r.ready.set(fiber.index);
  }
}

void set_ready(Fiber& fiber) {
  fiber.state = State::Ready;
  run_->ready.set(fiber.index);
}

void set_blocked(Fiber& fiber, State state) {
  fiber.state = state;
  run_->ready.reset(fiber.index);
}

void release_barrier(Block& block) {
  block.arrived = 0;
  ++block.generation;
  block.sums[block.generation & 1] = 0;
  for (int i = block.first; i < block.first + run_->block_threads; ++i) {
    if (fibers[i]->state == State::Barrier) set_ready(*fibers[i]);
  }
}

// Those of groups before `end`.
void do_copies(Fiber& fiber, unsigned end) {
  size_t kept = 0;
  for (const Copy& copy : fiber.copies) {
    if (copy.group >= end) {
      fiber.copies[kept++] = copy;
      continue;
    }
    std::memcpy(copy.to, copy.from, copy.valid);
    std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
  }
  fiber.copies.resize(kept);
}

// Where a fiber starts and ends.
void enter() {
  Run& r = *run_;
#if defined(__SANITIZE_ADDRESS__)
  // The first to be entered comes from run().
  const bool first = r.main_stack == nullptr;
  __sanitizer_finish_switch_fiber(nullptr, first ? &r.main_stack : nullptr,
                                  first ? &r.main_stack_bytes : nullptr);
#endif
  order_after(&r.start_edge);
  r.launch->body();
  Fiber& me = self();
  do_copies(me, ~0u);
  Block& block = *me.owner;
  set_blocked(me, State::Done);
  if (--block.alive == 0) {
    r.ended = &block;
  } else if (block.arrived == block.alive) {
    release_barrier(block);
  }
  leave();
}

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("cuda-host: " + what);
}

int64_t volume(dim3 d) { return int64_t{d.x} * d.y * d.z; }

bool in_shared(const Block& block, const void* pointer, size_t bytes) {
  const auto inside = [&](const void* memory, size_t size) {
    const char *p = static_cast<const char*>(pointer), *m = static_cast<const char*>(memory);
    return m && p >= m && p + bytes <= m + size;
  };
  if (inside(block.dynamic, run_->launch->shared_bytes)) return true;
  return std::any_of(block.variables.begin(), block.variables.end(),
                     [&](const SharedVariable& v) { return inside(v.memory, v.bytes); });
}

}  // namespace

// ---- What tests set ----

void set_schedule(Schedule wanted, uint64_t seed) {
  schedule = wanted;
  random_state = seed;
}

void set_device(const DeviceProperties& properties) { device = properties; }

DeviceProperties default_device() { return kDefaultDevice; }

Counts take_counts() { return std::exchange(counts, Counts{}); }

// ---- Launches ----

void allow_shared(const void* kernel, size_t bytes) {
  require(static_cast<int64_t>(bytes) <= device.shared_per_block_optin,
          "asking for " + std::to_string(bytes) + " bytes of shared memory, the device has " +
              std::to_string(device.shared_per_block_optin));
  const std::lock_guard lock(one_launch);
  allowed[kernel] = bytes;
}

int resident(int threads, size_t shared_bytes) {
  constexpr int64_t kReserved = 1 << 10;  // bytes of shared memory for each block
  const int64_t rounded = (threads + 31) / 32 * 32;
  return static_cast<int>(std::min<int64_t>(
      {device.blocks_per_multiprocessor, device.threads_per_multiprocessor / rounded,
       device.shared_per_multiprocessor / (static_cast<int64_t>(shared_bytes) + kReserved)}));
}

void run(const Launch& launch) {
  const std::lock_guard lock(one_launch);
  const int64_t blocks = volume(launch.grid), threads = volume(launch.block);
  const dim3 g = launch.grid, b = launch.block;
  require(blocks > 0 && blocks < (int64_t{1} << 31) && g.y < 65536 && g.z < 65536,
          "grid of " + std::to_string(g.x) + " x " + std::to_string(g.y) + " x " +
              std::to_string(g.z) + " blocks");
  require(threads > 0 && threads <= 1024 && b.z <= 64,
          "block of " + std::to_string(threads) + " threads");
  const auto asked = allowed.find(launch.kernel);
  const size_t most = asked != allowed.end() ? std::max<size_t>(asked->second, 48 << 10) : 48 << 10;
  require(launch.shared_bytes <= most, std::to_string(launch.shared_bytes) +
                                           " bytes of dynamic shared memory, allowed are " +
                                           std::to_string(most));
  if (launch.cooperative) {
    require(device.cooperative_launch, "the device has no cooperative launches");
    const int64_t room =
        int64_t{resident(static_cast<int>(threads), launch.shared_bytes)} * device.multiprocessors;
    require(blocks <= room, "cooperative launch of " + std::to_string(blocks) +
                                " blocks, resident at once are " + std::to_string(room));
  }

  static int64_t launches = 0;
  Run r{.launch = &launch, .number = ++launches};
  r.block_threads = static_cast<int>(threads);
  r.slots = static_cast<int>(launch.cooperative ? blocks : std::min(blocks, kBlocksAtOnce));
  r.order.resize(blocks);
  for (int64_t i = 0; i < blocks; ++i) r.order[i] = static_cast<unsigned>(i);
  if (schedule == Schedule::Reverse) std::reverse(r.order.begin(), r.order.end());
  if (schedule == Schedule::Random) {
    for (int64_t i = blocks - 1; i > 0; --i) std::swap(r.order[i], r.order[draw() % (i + 1)]);
  }
  const int n = r.slots * r.block_threads;
  while (static_cast<int>(fibers.size()) < n) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->index = static_cast<int>(fibers.size()) - 1;
  }
  r.ready.resize(n);
  r.spinning.resize(n);
  r.blocks.resize(r.slots);
  ++counts.launches;
  counts.cooperative += launch.cooperative;
  counts.threads += blocks * threads;

#if defined(SEQKERN_HOST_THREAD_SANITIZER)
  r.tsan = __tsan_get_current_fiber();
#endif
  order_before(&r.start_edge);
  run_ = &r;
  for (int slot = 0; slot < r.slots; ++slot) start_block(slot);
  r.last = schedule == Schedule::Reverse ? n : n - 1;
  if (schedule != Schedule::Forward && schedule != Schedule::Reverse) r.last = 0;
  int live = r.slots;
  while (live > 0 && r.error.empty()) {
    const int chosen = choose();
    if (chosen < 0) {
      r.error = deadlock();
      break;
    }
    if (!fibers[chosen]->waiting) ++r.progress;
    switch_to(nullptr, fibers[chosen].get());
    if (!r.ended) continue;
    Block& block = *std::exchange(r.ended, nullptr);
    {
      const Unseen unseen;
      free_shared(block);
    }
    if (r.next_block < r.order.size()) {
      start_block(static_cast<int>(&block - r.blocks.data()));
    } else {
      --live;
    }
  }
  order_after(&r.end_edge);
  run_ = nullptr;
  for (Block& block : r.blocks) free_shared(block);
  require(r.error.empty(), r.error);
}

// ---- The running thread ----

void fail(const std::string& what, Where where) { leave(place(where) + ": " + what); }

void yield() {
  if (!current->waiting && schedule != Schedule::Greedy) give_turn();
}

void begin_wait(Where where) {
  const Launch& launch = *run_->launch;
  if (!launch.cooperative && volume(launch.grid) > 1) {
    fail("spin_until outside a cooperative launch", where);
  }
  current->waiting = true;
}

void wait_again(Where where) {
  Fiber& me = self();
  me.spun = true;
  me.where = where;
  run_->ready.reset(me.index);
  run_->spinning.set(me.index);
  give_turn();
}

void end_wait() {
  Fiber& me = self();
  if (me.spun) ++run_->progress;
  me.waiting = me.spun = false;
}

int block_barrier(int value, Where where) {
  Fiber& me = self();
  Block& block = *me.owner;
  if (block.arrived > 0 && !same(block.where, where)) {
    fail("a barrier of the block, while others of its threads wait at " + place(block.where),
         where);
  }
  const unsigned parity = block.generation & 1;
  block.where = me.where = where;
  block.sums[parity] += value;
  order_before(&block.edges[parity]);
  if (++block.arrived == block.alive) {
    release_barrier(block);
  } else {
    set_blocked(me, State::Barrier);
  }
  give_turn();
  order_after(&block.edges[parity]);
  return block.sums[parity];
}

unsigned lane_index() { return static_cast<unsigned>(self().index % run_->block_threads) % 32; }

void meet_lanes(uint32_t mask, Combine combine, void* mine, bool orders_memory, Where where) {
  Fiber& me = self();
  Block& block = *me.owner;
  const int thread = me.index - block.first, warp = thread / 32, lane = thread % 32;
  if (!(mask >> lane & 1)) fail("lane " + std::to_string(lane) + " is not in its own mask", where);
  auto& meetings = block.warps[warp];
  auto found = std::find_if(meetings.begin(), meetings.end(),
                            [&](const auto& meeting) { return meeting->mask == mask; });
  if (found == meetings.end()) {
    const Unseen unseen;
    meetings.push_back(std::make_unique<Meeting>(Meeting{.mask = mask}));
    found = meetings.end() - 1;
  }
  Meeting& m = **found;
  if (m.arrived != 0 && (m.combine != combine || !same(m.where, where))) {
    fail("lanes meet, while others of the mask wait at " + place(m.where), where);
  }
  for (int other = 0; other < 32; ++other) {
    if (!(mask >> other & 1)) continue;
    const int index = warp * 32 + other;
    if (index >= run_->block_threads || fibers[block.first + index]->state == State::Done) {
      fail("lane " + std::to_string(other) + " of the mask has returned or does not exist", where);
    }
  }
  const unsigned parity = m.generation & 1;
  m.combine = combine;
  m.where = me.where = where;
  m.lanes[lane] = mine;
  m.arrived |= 1u << lane;
  if (orders_memory) order_before(&m.edges[parity]);
  if (m.arrived == mask) {
    combine(m.lanes, mask);
    m.arrived = 0;
    ++m.generation;
    for (int other = 0; other < 32; ++other) {
      if (mask >> other & 1) set_ready(*fibers[block.first + warp * 32 + other]);
    }
  } else {
    set_blocked(me, State::Lanes);
  }
  give_turn();
  if (orders_memory) order_after(&m.edges[parity]);
}

void* dynamic_shared(Where where) {
  if (!self().owner->dynamic) fail("the launch has no dynamic shared memory", where);
  return self().owner->dynamic;
}

void* static_shared(const void* key, size_t bytes, size_t alignment, Where where) {
  Block& block = *self().owner;
  for (const SharedVariable& variable : block.variables) {
    if (variable.key == key) return variable.memory;
  }
  block.static_bytes += bytes;
  const int64_t all = static_cast<int64_t>(block.static_bytes + run_->launch->shared_bytes);
  if (static_cast<int64_t>(block.static_bytes) > device.shared_per_block ||
      all > device.shared_per_block_optin) {
    fail(std::to_string(block.static_bytes) + " bytes of static and " +
             std::to_string(run_->launch->shared_bytes) + " of dynamic shared memory",
         where);
  }
  const Unseen unseen;
  block.variables.push_back({key, allocate_shared(bytes, alignment), bytes});
  return block.variables.back().memory;
}

// ---- Asynchronous copies ----

void copy_later(void* shared, const void* global, int bytes, int valid, Where where) {
  Fiber& me = self();
  const auto aligned = [&](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  if (valid < 0 || valid > bytes) fail("cp_async of " + std::to_string(valid) + " bytes", where);
  if (!aligned(shared) || (valid > 0 && !aligned(global))) fail("cp_async: not aligned", where);
  if (!in_shared(*me.owner, shared, bytes)) fail("cp_async to no shared memory", where);
  std::memset(shared, 0xff, bytes);
  const Unseen unseen;
  me.copies.push_back({shared, global, bytes, valid, me.group});
}

void commit_copies() { ++self().group; }

void wait_for_copies(int groups) {
  Fiber& me = self();
  const unsigned kept = groups;
  do_copies(me, me.group > kept ? me.group - kept : 0);
}

// ---- Tensor cores ----

namespace {

template <class T>
float element(const uint32_t* registers, int i) {
  return to_float(T{static_cast<uint16_t>(registers[i / 2] >> 16 * (i % 2))});
}

}  // namespace

// The PTX ISA's layouts, "Matrix Fragments for mma.m16n8k16".
template <class T>
void multiply(void* const (&lanes)[32], uint32_t /*mask*/) {
  float a[16][16], b[16][8];
  const auto fragments = [&](int lane) { return static_cast<Fragments*>(lanes[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) {
      a[g + 8 * (i / 2 % 2)][2 * t + i % 2 + 8 * (i / 4)] = element<T>(fragments(lane)->a, i);
    }
    for (int i = 0; i < 4; ++i) {
      b[2 * t + i % 2 + 8 * (i / 2)][g] = element<T>(fragments(lane)->b, i);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      float& sum = fragments(lane)->d[i];
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
    }
  }
}
template void multiply<f16>(void* const (&)[32], uint32_t);
template void multiply<bf16>(void* const (&)[32], uint32_t);

void gather_rows(void* const (&lanes)[32], uint32_t /*mask*/) {
  for (void* const to : lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      static_cast<Rows*>(to)->all[lane] =
          static_cast<const unsigned char*>(static_cast<const Rows*>(lanes[lane])->mine);
    }
  }
}

void check_row(const void* row, Where where) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row is not aligned", where);
  if (!in_shared(*self().owner, row, 16)) fail("ldmatrix: a row is not in shared memory", where);
}

}  // namespace host

void require_cooperative(host::Where where) {
  if (!host::run_->launch->cooperative) {
    host::fail("a grid barrier outside a cooperative launch", where);
  }
}

const DeviceProperties& device_properties(int /*device*/) { return host::device; }

}  // namespace seqkern::cuda
