// What stands in for cuda_device.cu where it is not built.
#include "device/device.hpp"

namespace lmkv {

std::unique_ptr<Device> make_cuda_device(SegmentTable, int, const TransferOptions&) {
  throw DeviceError("this build of lmkv has no CUDA device (nvcc was not found)");
}

CudaStatus cuda_status() { return {0, "not built in (nvcc was not found at build time)"}; }

}  // namespace lmkv
