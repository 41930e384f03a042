// The kernels alone, for those who read their machine code.
#include "device/kernels.cuh"

namespace lmkv {

template __global__ void copy_blocks<Direction::kGather>(const __grid_constant__ CopyLaunch);
template __global__ void copy_blocks<Direction::kScatter>(const __grid_constant__ CopyLaunch);

}  // namespace lmkv
