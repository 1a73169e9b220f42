#include "cpu/turns.h"

#include <vector>

#if defined(SEQKERN_TAKES_TURNS)
#include <sys/mman.h>
#include <ucontext.h>
#endif

namespace seqkern::cpu {

#if defined(SEQKERN_TAKES_TURNS)

namespace {

// Several times what a pass wants; memory is taken as it is touched.
constexpr size_t kStackBytes = size_t{512} << 10, kGuardBytes = size_t{64} << 10;

// A thread's, kept for the next region.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  ~Stacks() {
    for (void* stack : stacks_) munmap(stack, kGuardBytes + kStackBytes);
  }

  bool reserve(size_t n) {
    while (stacks_.size() < n) {
      void* const stack = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
      if (stack == MAP_FAILED) return false;
      // Stacks grow down: one that overflows ends the process.
      mprotect(stack, kGuardBytes, PROT_NONE);
      stacks_.push_back(stack);
    }
    return true;
  }
  char* at(size_t i) const { return static_cast<char*>(stacks_[i]) + kGuardBytes; }

 private:
  std::vector<void*> stacks_;
};

struct Turns {
  void (*body)(void*, int, int);
  void* context;
  int count, current = 0, left;
  std::vector<ucontext_t> contexts;
  std::vector<char> ended;

  Turns(void (*body)(void*, int, int), void* context, int count)
      : body(body), context(context), count(count), left(count), contexts(count), ended(count) {}

  void next() {
    const int from = current;
    do {
      current = (current + 1) % count;
    } while (ended[current]);
    swapcontext(&contexts[from], &contexts[current]);
  }
};

thread_local Stacks stacks;
thread_local Turns* turns = nullptr;

// Index 0 is on the thread's own stack and ends last, so that there is always one to go to.
void begin() noexcept {
  Turns& t = *turns;
  t.body(t.context, t.current, t.count);
  t.ended[t.current] = true;
  --t.left;
  t.next();
}

}  // namespace

bool take_turns(int count, void (*body)(void*, int, int), void* context) {
  if (!stacks.reserve(count - 1)) return false;
  Turns t(body, context, count);
  for (int i = 1; i < count; ++i) {
    ucontext_t& c = t.contexts[i];
    getcontext(&c);
    c.uc_stack.ss_sp = stacks.at(i - 1);
    c.uc_stack.ss_size = kStackBytes;
    c.uc_link = nullptr;
    makecontext(&c, begin, 0);
  }
  turns = &t;
  [&]() noexcept { body(context, 0, count); }();
  while (t.left > 1) t.next();
  turns = nullptr;
  return true;
}

bool taking_turns() { return turns != nullptr; }

void pass_turn() { turns->next(); }

#else

bool take_turns(int, void (*)(void*, int, int), void*) { return false; }
bool taking_turns() { return false; }
void pass_turn() {}

#endif

}  // namespace seqkern::cpu
