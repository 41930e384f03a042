#include "device/numa.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cstdint>
#include <fstream>
#include <limits>

namespace lmkv {
namespace {

constexpr int kPreferred = 1;  // MPOL_PREFERRED of mbind(2): libnuma is not worth a dependency
constexpr int kMostNodes = 1024;
constexpr int kBitsPerWord = std::numeric_limits<unsigned long>::digits;

}  // namespace

int numa_node_of_pci_device(const std::string& bus_id) {
  std::string name;
  for (const char c : bus_id) {  // CUDA writes capitals, sysfs small letters
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != ':' && c != '.') return -1;
    name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  int node = -1;
  std::ifstream("/sys/bus/pci/devices/" + name + "/numa_node") >> node;
  return node;
}

bool prefer_numa_node(std::byte* begin, std::size_t bytes, int node) {
  if (node < 0 || node >= kMostNodes) return false;
  std::array<unsigned long, kMostNodes / kBitsPerWord> mask{};
  const auto at = static_cast<unsigned>(node);
  mask[at / kBitsPerWord] |= 1UL << (at % kBitsPerWord);
  // The kernel reads one bit less than it is told of.
  return ::syscall(SYS_mbind, begin, bytes, kPreferred, mask.data(), kMostNodes + 1, 0) == 0;
}

}  // namespace lmkv
