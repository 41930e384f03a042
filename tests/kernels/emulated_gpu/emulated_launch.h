// Launches: every thread of every block, one after another.
#pragma once

namespace emulated_gpu {

cudaError_t enter(const char* function);        // the error the call is to return, if any
cudaError_t check_device(cudaStream_t stream);  // a launch needs the stream's device to be current
template <typename Parameter>
void run_threads(void (*kernel)(Parameter), dim3 grid, dim3 block, const Parameter& parameter) {
  gridDim = grid;
  blockDim = block;
  for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(parameter);
  }
}

}  // namespace emulated_gpu

template <typename Parameter>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameter), dim3 grid, dim3 block, void** arguments,
                             std::size_t, cudaStream_t stream) {
  if (const cudaError_t error = emulated_gpu::enter("cudaLaunchKernel"); error != cudaSuccess) {
    return error;
  }
  if (const cudaError_t error = emulated_gpu::check_device(stream); error != cudaSuccess) {
    return error;
  }
  if (grid.x == 0 || block.x == 0 || block.x > 1024) return cudaErrorInvalidValue;
  Parameter parameter;
  std::memcpy(&parameter, arguments[0], sizeof parameter);
  emulated_gpu::enqueue(
      stream, [=] { emulated_gpu::run_threads(kernel, grid, block, parameter); }, "kernel");
  return cudaSuccess;
}

template <typename Parameter>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(Parameter)) {
  *attributes = {};
  return emulated_gpu::enter("cudaFuncGetAttributes");
}
