// The threads of a parallel region one after the other on a single one, which goes to the next of
// them wherever it would have to wait: what each does, and so every bit of the result, is the same.
#pragma once

#include <cstdlib>  // and with it what names the C library

namespace seqkern::cpu {

// AddressSanitizer knows one stack to a thread.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define SEQKERN_TAKES_TURNS
inline constexpr bool kTakesTurns = true;
#else
inline constexpr bool kTakesTurns = false;
#endif

// Calls body(context, index, count) for all index in [0, count) on the calling thread, all but the
// first on stacks of their own, each until it calls pass_turn or returns. False, and nothing is
// done, where there are no such stacks (kTakesTurns) or no memory for them.
bool take_turns(int count, void (*body)(void* context, int index, int count), void* context);

// Whether the caller is within it.
bool taking_turns();

// Lets the others go on as far as they can: within take_turns, and before the last of them ends.
void pass_turn();

}  // namespace seqkern::cpu
