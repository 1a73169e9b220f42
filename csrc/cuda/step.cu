// The stepwise tier, and the gates again, once a chunk in any tier. One thread per (row, unit), the
// units of a row side by side, so that every access of a warp is to consecutive addresses.
#include "cuda/pointwise.cuh"

namespace seqkern::cuda {

namespace {

constexpr int kMostThreads = 256;

// A row takes whole blocks: what divides a thread's number is then the same for its block.
struct Shape {
  int threads, blocks_per_row;
  dim3 grid;
};
Shape shape_for(int64_t rows, int64_t width, int directions) {
  const int threads =
      static_cast<int>(width < kMostThreads ? (width + 31) / 32 * 32 : kMostThreads);
  const int64_t per_row = (width + threads - 1) / threads;
  return {threads, static_cast<int>(per_row),
          dim3(static_cast<unsigned>(rows * per_row), static_cast<unsigned>(directions))};
}

struct Place {
  int64_t row, unit;
};
SEQKERN_DEVICE Place place(int blocks_per_row) {
  const unsigned row = blockIdx.x / blocks_per_row, part = blockIdx.x % blocks_per_row;
  return {row, int64_t{part} * blockDim.x + threadIdx.x};
}

template <class Args>
int64_t most_rows(const Args& args) {
  const int64_t n = args.step[0].rows;
  return args.count == 2 && args.step[1].rows > n ? args.step[1].rows : n;
}

template <class C, class T>
SEQKERN_DEVICE void step_forward(const StepForward& args, int blocks_per_row) {
  using A = Math<T>;
  constexpr int G = C::kGates;
  const int d = blockIdx.y;
  const Forward& a = args.direction[d];
  const Step& s = args.step[d];
  const auto [r, unit] = place(blocks_per_row);
  if (r >= s.rows || unit >= a.H) return;
  const int64_t H = a.H, row = s.row + r;
  const int64_t first =
      a.steps.offsets ? a.steps.offsets[a.steps.begin] : a.steps.begin * a.steps.batch;
  const A* from_x = as<A>(a.x) + (row - first) * (G * H) + unit;
  const A* from_h = as<A>(args.product[d]) + r * (G * H) + unit;
  A x[G], q[G], c{}, h_prev{};
#pragma unroll
  for (int g = 0; g < G; ++g) {
    x[g] = from_x[g * H];
    q[g] = from_h[g * H];
  }
  add_bias<C>(as<A>(a.bias), H, unit, x, q);
  if constexpr (C::kHasCellState) c = as<A>(a.c)[r * H + unit];
  if constexpr (C::kRecurrentBias) h_prev = to_float(as<T>(a.h)[r * H + unit]);
  const T h = from_float<T>(forward_unit<C, T>(a, s.row, r, unit, x, q, h_prev, c));
  if constexpr (C::kHasCellState) store_c<T>(a, r * H + unit, c);
  if (a.hidden) {
    as<T>(a.hidden)[r * H + unit] = h;
  } else {
    as<T>(a.h)[r * H + unit] = h;
    as<T>(a.output)[row * a.ldo + unit] = h;
  }
}

template <class C, class T>
SEQKERN_DEVICE void step_backward(const StepBackward& args, int blocks_per_row) {
  using A = Math<T>;
  const int d = blockIdx.y;
  const Backward& a = args.direction[d];
  const Step& s = args.step[d];
  const auto [r, unit] = place(blocks_per_row);
  if (r >= s.rows || unit >= a.H) return;
  const int64_t H = a.H;
  const int64_t first =
      a.steps.offsets ? a.steps.offsets[a.steps.begin] : a.steps.begin * a.steps.batch;
  const auto in = read_backward<C, T>(a, s, s.row - first, 0, r, unit);
  const A grad_h = a.projected ? as<A>(a.projected)[r * H + unit] : as<A>(a.grad_h)[r * H + unit];
  A grad_state{}, gates[C::kGradGates];
  constexpr bool kCarries = C::kHasCellState || C::kCarriesGradH;
  if constexpr (kCarries) grad_state = as<A>(a.grad_state)[r * H + unit];
  backward_unit<C, T>(a, s.row, s.row - first, r, unit, in, grad_h, grad_state, gates);
  if constexpr (kCarries) as<A>(a.grad_state)[r * H + unit] = grad_state;
}

template <class T>
SEQKERN_DEVICE void step_project(const StepBackward& args, int blocks_per_row) {
  using A = Math<T>;
  const int d = blockIdx.y;
  const Backward& a = args.direction[d];
  const Step& s = args.step[d];
  const auto [r, unit] = place(blocks_per_row);
  if (r >= s.rows || unit >= a.K) return;
  const int64_t first =
      a.steps.offsets ? a.steps.offsets[a.steps.begin] : a.steps.begin * a.steps.batch;
  const int64_t row = s.row + r;
  const A grad_h =
      as<A>(a.grad_h)[r * a.K + unit] + to_float(as<T>(a.grad_output)[row * a.ldo + unit]);
  as<T>(a.grad_projected_h)[(row - first) * a.K + unit] = from_float<T>(grad_h);
  if (a.step_grad_h) as<A>(a.step_grad_h)[row * a.K + unit] = grad_h;
}

template <class C, class T>
SEQKERN_DEVICE void activate(const Activate& a, int blocks_per_row) {
  using A = Math<T>;
  constexpr int G = C::kGates, S = C::kSaved;
  const auto [row, unit] = place(blocks_per_row);
  if (unit >= a.H) return;
  A x[G], q[G], saved[S];
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const int64_t i = row * (G * a.H) + g * a.H + unit;
    x[g] = as<A>(a.x)[i];
    q[g] = as<A>(a.product)[i];
  }
  add_bias<C>(as<A>(a.bias), a.H, unit, x, q);
  C::template activate<Functions<A>>(x, q, saved);
#pragma unroll
  for (int k = 0; k < S; ++k) {
    as<T>(a.gates)[row * (S * a.H) + k * a.H + unit] = from_float<T>(saved[k]);
  }
}

}  // namespace

// ---- Kernels: seqkern_CELL_NAME_TYPE(arguments, blocks per row) ----

#define SEQKERN_CELL_KERNELS(type, T, cell, C)                                                  \
  extern "C" __global__ void __launch_bounds__(kMostThreads)                                    \
      seqkern_##cell##_step_forward_##type(SEQKERN_PARAMETER StepForward args, int per_row) {   \
    step_forward<C, T>(args, per_row);                                                          \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(kMostThreads)                                    \
      seqkern_##cell##_step_backward_##type(SEQKERN_PARAMETER StepBackward args, int per_row) { \
    step_backward<C, T>(args, per_row);                                                         \
  }
#define SEQKERN_ALL_TYPES(cell, C, _) SEQKERN_FOR_TYPES(SEQKERN_CELL_KERNELS, cell, C)
SEQKERN_FOR_CELLS(SEQKERN_ALL_TYPES, )

// The other cells save nothing that could be computed again.
#define SEQKERN_ACTIVATE_KERNELS(type, T, cell, C)                                     \
  extern "C" __global__ void __launch_bounds__(kMostThreads)                           \
      seqkern_##cell##_activate_##type(SEQKERN_PARAMETER Activate args, int per_row) { \
    activate<C, T>(args, per_row);                                                     \
  }
SEQKERN_FOR_TYPES(SEQKERN_ACTIVATE_KERNELS, lstm, Lstm)
SEQKERN_FOR_TYPES(SEQKERN_ACTIVATE_KERNELS, gru, Gru)

#define SEQKERN_TYPE_KERNELS(type, T, _)                                              \
  extern "C" __global__ void __launch_bounds__(kMostThreads)                          \
      seqkern_step_project_##type(SEQKERN_PARAMETER StepBackward args, int per_row) { \
    step_project<T>(args, per_row);                                                   \
  }
SEQKERN_FOR_TYPES(SEQKERN_TYPE_KERNELS, )

// ---- Launches ----

void launch_step_forward(Cell cell, Type type, const StepForward& args, Stream stream) {
  static void (*const kKernels[kNumCells][kNumTypes])(StepForward, int) =
      SEQKERN_TABLE(step_forward);
  const Shape shape = shape_for(most_rows(args), args.direction[0].H, args.count);
  if (shape.grid.x == 0) return;
  launch(kKernels[int(cell)][int(type)], shape.grid, dim3(shape.threads), 0, stream, args,
         shape.blocks_per_row);
}

void launch_step_backward(Cell cell, Type type, const StepBackward& args, Stream stream) {
  static void (*const kKernels[kNumCells][kNumTypes])(StepBackward, int) =
      SEQKERN_TABLE(step_backward);
  const Shape shape = shape_for(most_rows(args), args.direction[0].H, args.count);
  if (shape.grid.x == 0) return;
  launch(kKernels[int(cell)][int(type)], shape.grid, dim3(shape.threads), 0, stream, args,
         shape.blocks_per_row);
}

void launch_step_project(Type type, const StepBackward& args, Stream stream) {
  static void (*const kKernels[kNumTypes])(StepBackward, int) = {
      seqkern_step_project_f32, seqkern_step_project_f64, seqkern_step_project_bf16,
      seqkern_step_project_f16};
  const Shape shape = shape_for(most_rows(args), args.direction[0].K, args.count);
  if (shape.grid.x == 0) return;
  launch(kKernels[int(type)], shape.grid, dim3(shape.threads), 0, stream, args,
         shape.blocks_per_row);
}

void launch_activate(Cell cell, Type type, const Activate& args, Stream stream) {
  static void (*const kKernels[kNumCells][kNumTypes])(Activate, int) = {
      {SEQKERN_FOR_TYPES(SEQKERN_ENTRY, lstm, activate)},
      {SEQKERN_FOR_TYPES(SEQKERN_ENTRY, gru, activate)}};
  const Shape shape = shape_for(args.rows, args.H, 1);
  if (shape.grid.x == 0) return;
  launch(kKernels[int(cell)][int(type)], shape.grid, dim3(shape.threads), 0, stream, args,
         shape.blocks_per_row);
}

}  // namespace seqkern::cuda
