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

// In the order of seqkern::Cell.
template <class T>
constexpr LayerKernels<T> layer_kernels() {
  return {
      {step<Lstm, T>, step<Gru, T>, step<RnnTanh, T>, step<RnnRelu, T>},
      {packed_step<Lstm, T>, packed_step<Gru, T>, packed_step<RnnTanh, T>, packed_step<RnnRelu, T>},
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
      gemm<T>,
      add_columns<T>,
      kStepRows,
      {unit_vectors(Lstm::kGates) * Simd<T>::kLanes, unit_vectors(Gru::kGates) * Simd<T>::kLanes,
       unit_vectors(RnnTanh::kGates) * Simd<T>::kLanes,
       unit_vectors(RnnRelu::kGates) * Simd<T>::kLanes},
  };
}

constexpr KernelTable kTable = {kVectorBytes, layer_kernels<float>(), layer_kernels<double>()};

}  // namespace

const KernelTable& table() { return kTable; }

}  // namespace seqkern::cpu::SEQKERN_CAPABILITY
