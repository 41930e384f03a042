#include "device/device.hpp"

#include <charconv>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace lmkv {

std::unique_ptr<Device> make_device(const std::string& name, SegmentTable table,
                                    const TransferOptions& options) {
  if (name == "host") return make_host_device(std::move(table));
  constexpr std::string_view kCuda = "cuda:";
  if (name.starts_with(kCuda)) {
    int ordinal = -1;
    const char* const end = name.data() + name.size();
    const auto [rest, error] = std::from_chars(name.data() + kCuda.size(), end, ordinal);
    if (error == std::errc{} && rest == end && ordinal >= 0) {
      return make_cuda_device(std::move(table), ordinal, options);
    }
  }
  throw std::invalid_argument("device must be \"host\" or \"cuda:<n>\", not \"" + name + "\"");
}

}  // namespace lmkv
