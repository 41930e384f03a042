// Where in the machine memory and devices are. Hints: what cannot be found out or set is left.
#pragma once

#include <cstddef>
#include <string>

namespace lmkv {

// The NUMA node that a PCI device such as "0000:3B:00.0" hangs at; -1 where there is only one, or
// it is not known. Reads sysfs.
[[nodiscard]] int numa_node_of_pci_device(const std::string& bus_id);

// Pages of this range that are not there yet come from `node` while it has any. False if the kernel
// was not asked (node < 0) or refused.
bool prefer_numa_node(std::byte* begin, std::size_t bytes, int node);

}  // namespace lmkv
