// Compiled once per capability level, with that level's flags and -DSEQKERN_CAPABILITY=... . It
// must define nothing outside the level's namespace: an inline function of a shared header kept
// from this object would carry its instructions to every machine.
#include "cpu/kernels.h"

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/gemm.h"
#include "cpu/layer.h"
#include "cpu/step.h"

namespace seqkern::cpu::SEQKERN_CAPABILITY {

namespace {

// In the order of seqkern::Cell. There is no step of bfloat16: no rows are few enough for it.
template <class T>
constexpr LayerKernels<T> layer_kernels() {
  LayerKernels<T> kernels{
      {},
      {},
      {activate<Lstm, T>, activate<Gru, T>, activate<RnnTanh, T>, activate<RnnRelu, T>},
      {forward<Lstm, T>, forward<Gru, T>, forward<RnnTanh, T>, forward<RnnRelu, T>},
      {backward<Lstm, T>, backward<Gru, T>, backward<RnnTanh, T>, backward<RnnRelu, T>},
      packed_gates_size<T>,
      packed_rows_size<T>,
      pack_gates<T>,
      pack_rows<T>,
      gemm_packed_size<T>,
      gemm_scratch_size<T>,
      gemm_pack<T>,
      gemm_in_place<T>,
      gemm_deals<T>,
      gemm<T>,
      add_columns<T>,
      dot_steps<T>,
      0,
      {unit_vectors(Lstm::kGates) * kLanesOf<T>, unit_vectors(Gru::kGates) * kLanesOf<T>,
       unit_vectors(RnnTanh::kGates) * kLanesOf<T>, unit_vectors(RnnRelu::kGates) * kLanesOf<T>},
  };
  if constexpr (kOperandTerms<T> == 1) {
    constexpr auto set = [](auto& to, auto lstm, auto gru, auto tanh, auto relu) {
      to[0] = lstm, to[1] = gru, to[2] = tanh, to[3] = relu;
    };
    set(kernels.step, step<Lstm, T>, step<Gru, T>, step<RnnTanh, T>, step<RnnRelu, T>);
    set(kernels.packed_step, packed_step<Lstm, T>, packed_step<Gru, T>, packed_step<RnnTanh, T>,
        packed_step<RnnRelu, T>);
    kernels.step_rows = kStepRows;
  }
  return kernels;
}

#if defined(__AVX512BF16__)
constexpr LayerKernels<Bf16> kBf16Table = layer_kernels<Bf16>();
#else
constexpr KernelTable kTable = {kVectorBytes, layer_kernels<float>(), layer_kernels<double>()};
#endif

}  // namespace

#if defined(__AVX512BF16__)
const LayerKernels<Bf16>& bf16_table() { return kBf16Table; }
#else
const KernelTable& table() { return kTable; }
#endif

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
