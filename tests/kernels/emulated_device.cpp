// The real GPU device over the emulated GPU: what the linker would take from the core otherwise.
#include "device/cuda_device.cu"  // NOLINT(bugprone-suspicious-include)
