// The text of faults, which is an argument of tools: refused with a reason, or read as it is meant.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

#include "expect.hpp"
#include "io/fault_spec.hpp"

namespace lmkv::fuzz {
namespace {

std::string text_of(const Fault& fault) {
  std::string text = fault.only ? std::string(name_of(*fault.only)) + "." : "";
  text += name_of(fault.kind);
  const bool takes_time = fault.kind == FaultKind::kDelay || fault.kind == FaultKind::kReorder;
  if (takes_time) text += ":" + std::to_string(fault.time.count()) + "us";
  char rate[40];
  std::snprintf(rate, sizeof rate, ":%.17g", fault.rate);
  return text + rate;
}

void check(std::string_view input) {
  FaultSpec spec;
  try {
    spec = parse_faults(input);
  } catch (const std::invalid_argument& error) {
    expect(std::string_view(error.what()).find("fault") != std::string_view::npos, "no reason");
    return;
  }
  std::string again;
  for (const Fault& fault : spec) {
    expect(fault.rate >= 0 && fault.rate <= 1, "a rate that is none");
    expect(fault.time.count() >= 0 && fault.time <= std::chrono::hours(1), "a time that is none");
    again += (again.empty() ? "" : ",") + text_of(fault);
  }
  expect(parse_faults(again) == spec, "written and read again it is another");
}

}  // namespace
}  // namespace lmkv::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lmkv::fuzz::check({reinterpret_cast<const char*>(data), size});
  return 0;
}
