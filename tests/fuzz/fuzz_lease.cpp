// Bytes in the lease's file: whoever waits takes them for somebody's, whoever holds it notices.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "expect.hpp"
#include "store/directory.hpp"
#include "store/lease.hpp"

namespace lmkv::fuzz {
namespace {

using namespace std::chrono_literals;
using Answer = EvictorLease::Answer;

class Tree {
 public:
  Tree() { make_tree(paths); }
  void write(std::string_view bytes) const {
    const int file = ::open(lease.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    const auto size = static_cast<ssize_t>(bytes.size());
    expect(file >= 0 && ::write(file, bytes.data(), bytes.size()) == size, "cannot write");
    ::close(file);
  }
  [[nodiscard]] std::string text() const {
    const int file = ::open(lease.c_str(), O_RDONLY | O_CLOEXEC);
    std::string bytes(1 << 16, '\0');
    const ssize_t got = ::read(file, bytes.data(), bytes.size());
    ::close(file);
    return bytes.substr(0, static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  }

  const Scratch scratch;
  const ChunkPaths paths{scratch.path(), NamespaceDigest{}, 0};
  const std::string lease = scratch.path() + "/v1/evictor.lease";
};

void check(std::string_view bytes) {
  static Tree tree;
  ::unlink(tree.lease.c_str());
  {
    tree.write(bytes);
    EvictorLease waiter(tree.paths, 1h);
    expect(waiter.try_acquire() == Answer::kBusy, "a lease that somebody has was taken");
    expect(tree.text() == bytes, "a lease that somebody has was changed");
  }
  ::unlink(tree.lease.c_str());
  EvictorLease holder(tree.paths, 0s);  // it looks, and writes, at every renewal
  expect(holder.try_acquire() == Answer::kHeld, "a free lease was not taken");
  const std::string own = tree.text();
  const std::string holder_name = own.substr(0, own.rfind(' ') + 1);
  // '@' stands for our own name, which no input can know.
  std::string other(bytes);
  if (const std::size_t at = other.find('@'); at != std::string::npos) {
    other.replace(at, 1, holder_name);
  }
  tree.write(other);
  const bool is_ours = other.empty() || std::string_view(other).starts_with(holder_name);
  expect(holder.renew() == is_ours, "a lease of somebody else's was renewed, or our own not");
  if (!is_ours) {
    holder.release();
    expect(tree.text() == other, "a lease of somebody else's was given back");
  }
}

}  // namespace
}  // namespace lmkv::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lmkv::fuzz::check({reinterpret_cast<const char*>(data), size});
  return 0;
}
