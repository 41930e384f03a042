#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstddef>

#include "device/numa.hpp"

namespace lmkv {
namespace {

TEST(NumaTest, ADeviceThatIsNotThereHasNoNode) {
  EXPECT_EQ(numa_node_of_pci_device("ffff:ff:1f.7"), -1);
  EXPECT_EQ(numa_node_of_pci_device(""), -1);
  EXPECT_EQ(numa_node_of_pci_device("../../../../../etc/passwd"), -1);
}

TEST(NumaTest, MemoryIsPreferredFromTheFirstNode) {
  constexpr std::size_t kBytes = 1 << 20;
  void* const memory =
      ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* const begin = static_cast<std::byte*>(memory);
  EXPECT_FALSE(prefer_numa_node(begin, kBytes, -1));
  EXPECT_FALSE(prefer_numa_node(begin, kBytes, 100000));
  if (!prefer_numa_node(begin, kBytes, 0)) {
    GTEST_SKIP() << "this kernel or container has no mbind(2)";
  }
  begin[kBytes - 1] = std::byte{1};  // and it can be used
  ::munmap(memory, kBytes);
}

}  // namespace
}  // namespace lmkv
