// Paged blocks to and from contiguous bytes where both are in host memory.
#pragma once

#include "device/device.hpp"
#include "device/segment_table.hpp"

namespace lmkv {

// Copies `transfer` on the calling thread, without regard to its fence and callback.
void copy_blocks_on_host(const Transfer& transfer, const SegmentTable& table);

}  // namespace lmkv
