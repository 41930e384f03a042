// XXH3-64, by the widest instructions of this processor that pay.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmkv {

// Any thread. The same value on every machine.
std::uint64_t xxh3(const void* bytes, std::size_t count);

// The same of bytes that come one piece after the other. One thread.
class Xxh3Stream {
 public:
  Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;
  ~Xxh3Stream();
  void add(const void* bytes, std::size_t count);
  [[nodiscard]] std::uint64_t value() const;

 private:
  void* state_;  // XXH3_state_t, whose header is not for everybody
};

// "AVX2", or "as the library was built": distributions build it for their oldest processor.
const char* xxh3_instructions();

}  // namespace lmkv
