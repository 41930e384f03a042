#include "engine/transfer_bench.hpp"

#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "store/chunk_format.hpp"

namespace lmkv {

TransferBench::TransferBench(const std::string& device, const std::vector<Segment>& segments,
                             const TransferOptions& options, std::size_t host_bytes)
    : block_bytes_(SegmentTable(segments).block_bytes()),
      device_(make_device(device, SegmentTable(segments), options)),
      pool_(std::make_unique<PrivateSlabPool>(round_up_to_page(host_bytes), 1, *device_)) {
  device_->start();
  slab_ = pool_->try_acquire();
}

TransferBench::~TransferBench() { device_->stop(); }

std::chrono::duration<double> TransferBench::run(Direction direction,
                                                 const std::vector<std::vector<BlockId>>& transfers,
                                                 std::uintptr_t stream) {
  std::size_t blocks = 0;
  for (const std::vector<BlockId>& transfer : transfers) blocks += transfer.size();
  if (blocks * block_bytes_ > host().size()) {
    throw std::invalid_argument("the transfers are larger than the host memory");
  }
  std::mutex mutex;
  std::condition_variable all_done;
  std::size_t left = transfers.size();
  std::string error;
  std::byte* at = host().data();

  const auto begin = std::chrono::steady_clock::now();
  const std::shared_ptr<const Fence> after = device_->fence(stream);
  for (const std::vector<BlockId>& ids : transfers) {
    Transfer transfer;
    transfer.direction = direction;
    transfer.blocks = ids;
    transfer.host = at;
    transfer.after = after;
    transfer.done = [&](const Status& status) {
      const std::lock_guard lock(mutex);
      if (!status.is_ok()) error = status.message();
      if (--left == 0) all_done.notify_one();
    };
    at += ids.size() * block_bytes_;
    device_->submit(std::move(transfer));
  }
  {
    std::unique_lock lock(mutex);
    all_done.wait(lock, [&] { return left == 0; });
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  if (!error.empty()) throw std::runtime_error(error);
  return took;
}

std::map<std::string, std::string> TransferBench::info() const {
  std::map<std::string, std::string> all = device_->info();
  all["pin_error"] = pool_->pin_error();
  return all;
}

}  // namespace lmkv
