// What a capability level offers: one layer, one direction, one chunk of consecutive time steps,
// executed together by the threads of a team. Raw pointers and sizes only.
//
// Rows are time-major: step t owns rows [offsets[t], offsets[t + 1]) and their number never grows
// with t, so that row r of step t continues row r of step t - 1. A direction that runs backwards
// in time takes the steps of a chunk in the opposite order; rows that begin with it then join at
// their own last step, with the initial state.
//
// Notation: T steps, B rows of the first step, R rows in all, H hidden size, K width of h (the
// projected size, or H), G gates. "chunk" arrays start at the chunk's first row.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cells/cell.h"
#include "cpu/capability.h"
#include "cpu/parallel.h"

namespace seqkern::cpu {

// A thread's place in the team that works on one direction. The team splits either the rows, in
// groups for all steps of a chunk (no barrier), or the hidden units (one barrier a step).
struct Worker {
  int index;
  int count;
  RowGroups groups;  // of rows, or none
  bool alternate;    // panels there and, in the next step, back
  Barrier* barrier;
};

// bfloat16. Layers of it multiply pairs of elements, so that H and K must be even, and h and
// matrices of weights aligned to a pair; the large products take any size, but for those of few
// rows.
struct Bf16 {
  uint16_t bits;
};

// The type T of a kernel is that of sequences, weights and saved gates; sums, cell states and gates
// in the making have the arithmetic's.
template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, Bf16>, float, T>;

struct Steps {
  const int64_t* offsets;  // [T + 1]
  int64_t total;           // T
  int64_t begin, end;      // the chunk
  bool reverse;            // time runs from T - 1 to 0
};

template <typename T>
struct ForwardArgs {
  Steps steps;
  int64_t H, K;
  const Arithmetic<T>* x;  // row stride ldx: W_ih x [rows, G*H], no bias
  int64_t ldx;
  const int64_t* x_rows;  // where each step's begin in x, of a chunk in groups; null: as elsewhere
  // [B, G*H] or null: W_hh h_{t-1}, ready made, for a chunk of one step
  const Arithmetic<T>* product;
  // [G + 1, H]: what is added to x; last row: inside the last gate's product
  const Arithmetic<T>* bias;
  const T* w_hh;  // packed [G*H, K] (pack_gates), unread where no step has a product of its own
  const T* w_hr;  // packed [K, H] (pack_gates with one gate), null without projection
  const T* h_0;   // [B, K]
  T* output;      // all rows [R, ldo], first K columns
  int64_t ldo;
  Arithmetic<T>* c;      // [B, H] running cell state, c_0 on entry; null where there is none
  T* gates;              // chunk [rows, S*H] or null: may start where x does
  Arithmetic<T>* cells;  // chunk [rows, H] or null: every c_t
  T* hidden;             // [B, H] scratch with projection: h before it
  // [B, H] running h, h_0 on entry: of a cell that adds to it (kCarriesGradH), where T is coarser
  // than the arithmetic; else null
  Arithmetic<T>* h = nullptr;
  bool plain_w_hh = false;  // w_hh lies [G*H, K], for a few rows
  bool from_zero = false;   // h_0 is zero: rows that begin have no recurrent product
};

// Rows wherever they lie: `row` apart; a padded batch's steps `step` apart, while those of a ragged
// one (-1) follow one another.
template <typename T>
struct PlacedRows {
  const T* data;
  int64_t step, row;

  // Of step t, which begins with the first-th of all rows.
  [[gnu::always_inline]] const T* of_step(int64_t t, int64_t first) const {
    return data + (step < 0 ? first * row : t * step);
  }
};

template <typename T>
struct BackwardArgs {
  Steps steps;
  int64_t H, K;
  PlacedRows<T> grad_output;  // first K columns
  const T* output;            // all rows [R, ldo], first K columns
  int64_t ldo;
  const Arithmetic<T>* grad_h_n;  // [B, K]
  const T* gates;                 // chunk [rows, S*H]
  const Arithmetic<T>* cells;     // all rows [R, H]
  const T* h_0;                   // [B, K]
  const Arithmetic<T>* c_0;       // [B, H]
  const T* w_hh;  // packed [kGradRotation-rotated G*H, K] (pack_rows), null if T == 1
  const T* w_hr;  // packed [K, H] (pack_rows), null without projection
  // [B, H]: carried over the steps, grad of c_n on entry for the LSTM
  Arithmetic<T>* grad_state;
  T* grad_gates;               // chunk [rows, GG*H], GG = kGradGates; may be gates where S = GG
  const T* grad_gates_next;    // [B, GG*H]: those of the step after the chunk, in time's direction
  T* grad_h;                   // chunk [rows, K] with projection: dLoss/dh_t; else null
  T* hidden;                   // chunk [rows, H] with projection: h before it; else null
  Arithmetic<T>* step_grad_h;  // all rows [R, K] or null: dLoss/dh_t
  Arithmetic<T>* step_grad_c;  // all rows [R, H] or null: dLoss/dc_t
};

template <typename T>
struct ActivateArgs {
  int64_t H, rows;
  const Arithmetic<T>* x;        // [rows, G*H]: W_ih x, no bias; may be gates where S = G
  const Arithmetic<T>* product;  // [rows, G*H]: W_hh h_{t-1}, no bias; null where x has it
  const Arithmetic<T>* bias;     // as in ForwardArgs
  T* gates;                      // [rows, S*H]
};

// One time step of one direction.
template <typename T>
struct StepArgs {
  int64_t B, I, H;
  const T* x;            // [B, I]
  const T* h;            // [B, H]
  const T* c;            // [B, H], null where there is none
  const T *w_ih, *w_hh;  // [G*H, I], [G*H, H]: as they lie, or packed (pack_gates)
  const T *b_ih, *b_hh;  // [G*H], both null without biases
  T* output;             // [B, H], row stride ldo: the next h; may not be h
  int64_t ldo;
  T* c_n;                  // [B, H], null where there is none; may be c
  T* gates;                // [B, S*H] or null
  bool back = false;       // the last units first
  bool from_zero = false;  // h is zero, and w_hh is not read
  bool streams = false;    // one row of weights after the other comes faster than several at once
};

// c [M, N] = a b, or += where add; sums of k_block terms at most (0: as many as are fastest).
template <typename T>
struct GemmArgs {
  int64_t M, N, K;
  const T* a;  // element (i, k) at a[i * a_row + k * a_column]
  int64_t a_row, a_column;
  const T* b;  // element (k, j) at b[k * b_row + j * b_column]
  int64_t b_row, b_column;
  // b by gemm_pack; null where b is read as it lies: for few rows of a, which must be contiguous,
  // and in bfloat16 of pairs; or in_place
  const T* packed;
  Arithmetic<T>* c;  // row stride ldc
  int64_t ldc;
  bool add;
  int64_t k_block;
  // The rows of a, M in all, of each of so many time steps, [offsets[t], offsets[t + 1]) from the
  // first one's on, where they begin in c, and their groups. Where gemm_deals says so, a thread
  // makes its groups' rows. Else there are no groups, and c's rows are a's.
  const int64_t* offsets = nullptr;
  const int64_t* c_rows = nullptr;
  int64_t steps = 0;
  RowGroups groups = {};
  bool in_place = false;              // gemm_in_place says that b may stay as it is for any a
  PlainRows plain = PlainRows::Slow;  // how b is read where it is not packed
  const GemmArgs* also = nullptr;  // another product of the same a, which is packed once for both
};

template <typename T>
struct LayerKernels {
  // Thread `index` of `count` makes its share of the units; nobody waits.
  void (*step[kNumCells])(const StepArgs<T>&, int index, int count);
  void (*packed_step[kNumCells])(const StepArgs<T>&, int index, int count);
  void (*activate[kNumCells])(const ActivateArgs<T>&, const Worker&);
  void (*forward[kNumCells])(const ForwardArgs<T>&, const Worker&);
  void (*backward[kNumCells])(const BackwardArgs<T>&, const Worker&);

  // Elements of a packed matrix.
  int64_t (*packed_gates_size)(int gates, int64_t units, int64_t k);
  int64_t (*packed_rows_size)(int64_t k, int64_t n);
  // w [gates*units, k] -> panels for h W^T with all gates of a unit side by side. Thread `index`
  // of `count` packs the panels that it will read when the units are split.
  void (*pack_gates)(const T* w, int64_t ldw, int gates, int64_t units, int64_t k, T* packed,
                     int index, int count);
  // w [k, n], its rows rotated so that row `first` comes first -> panels for d W.
  void (*pack_rows)(const T* w, int64_t ldw, int64_t k, int64_t first, int64_t n, T* packed,
                    int index, int count);
  // The large products. b [k, n] is packed by the threads of a team together; then each makes its
  // part of c, with a scratch of its own.
  int64_t (*gemm_packed_size)(int64_t k, int64_t n);
  int64_t (*gemm_scratch_size)();
  void (*gemm_pack)(const T* b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n,
                    T* packed, int index, int count);
  // Whether b [k, n] is read as fast where it lies.
  bool (*gemm_in_place)(int64_t row_stride, int64_t column_stride, int64_t k, int64_t n);
  // Whether gemm deals the rows of steps as the time loops do.
  bool (*gemm_deals)(const GemmArgs<T>&);
  void (*gemm)(const GemmArgs<T>&, T* scratch, int index, int count);
  // to [n] += the sums of the columns of a [rows, n].
  void (*add_columns)(const T* a, int64_t lda, int64_t rows, int64_t n, Arithmetic<T>* to);

  // Whether w_hh of K = k columns is better read as it lies.
  bool (*dot_steps)(int gates, int64_t steps, int64_t rows, int64_t k, PlainRows plain);

  // Rows up to which `step` is faster than two large products and the gates.
  int64_t step_rows;

  // Hidden units in one panel of each cell, forward: no finer split of the units exists.
  int panel_units[kNumCells];
};

struct KernelTable {
  int vector_bytes;
  LayerKernels<float> f32;
  LayerKernels<double> f64;
};

namespace AVX512_BF16 {
const LayerKernels<Bf16>& bf16_table();
}
namespace DEFAULT {
const KernelTable& table();
}
namespace AVX2 {
const KernelTable& table();
}
namespace AVX512 {
const KernelTable& table();
}

}  // namespace seqkern::cpu
