#include "io/direct_file.hpp"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <string_view>
#include <utility>

#include "common/types.hpp"
#include "io/file_operations.hpp"
#include "io/file_task.hpp"

namespace lmkv {
namespace {

// EAGAIN storms end: an operation that needs more than this many retries, two seconds of them,
// has failed. The first are made at once, the others after pauses that grow, so that no thread
// spins.
constexpr int kMaxRetries = 200;
constexpr int kRetriesAtOnce = 4;
constexpr long kFirstPauseNs = 100'000;
constexpr int kPauseDoublings = 7;

// Touches are small and nobody waits for them: a few at a time, and no endless queue.
constexpr std::size_t kTouchDepth = 8;
constexpr std::size_t kMaxWaitingTouches = 1 << 14;

}  // namespace

void FileTask::start() {
  enter(path().substr(0, path().rfind('/')), [this](int result) { entered(result); });
}

// O_PATH descriptors are closed at once, without a look at the disk: no operation is needed.
void FileTask::enter(std::string directory, Continuation next) {
  directory_ = std::move(directory) + "/";
  opened_directory_ = UniqueFd();
  Operation op;
  op.kind = OperationKind::kEnter;
  op.path = root().c_str();
  step(op, [this, next = std::move(next)](int opened_root) {
    if (opened_root < 0) return next(opened_root);
    opened_directory_ = UniqueFd(opened_root);
    if (directory_.size() == root().size() + 1) return next(0);
    Operation below;
    below.kind = OperationKind::kEnter;
    below.path = directory_.c_str();
    below.directory = opened_root;
    below.skip = root().size() + 1;
    step(below, [this, next](int opened) {
      opened_directory_ = UniqueFd(opened);  // -1 or an errno is none
      next(std::min(opened, 0));
    });
  });
}

void FileTask::step(Operation operation, Continuation next) {
  const std::string_view path = operation.path == nullptr ? "" : operation.path;
  const bool is_here = operation.kind != OperationKind::kEnter && path.starts_with(directory_) &&
                       path.find('/', directory_.size()) == std::string_view::npos;
  if (is_here) {
    operation.directory = opened_directory_.get();
    operation.skip = directory_.size();
  }
  step_ = operation;
  step_.handler = this;
  step_kind_ = operation.kind;
  next_ = std::move(next);
  owner_.engine_.submit(step_);
}

void FileTask::transfer(OperationKind kind, int descriptor, std::byte* buffer, Caching caching,
                        std::function<void(int)> next) {
  granule_ = caching == Caching::kDirect ? kPageBytes : 1;
  pieces_kind_ = kind;
  pieces_done_ = std::move(next);
  pieces_outcome_.store(0, std::memory_order_relaxed);
  pieces_.clear();
  if (lane_ == Lane::kRead) owner_.take_again(*this);
  for (std::size_t at = 0; at < bytes_; at += owner_.options_.request_bytes) {
    Operation& piece = pieces_.emplace_back();
    piece.kind = kind;
    piece.handler = this;
    piece.descriptor = descriptor;
    piece.buffer = buffer + at;
    piece.length = std::min(owner_.options_.request_bytes, bytes_ - at);
    piece.offset = at;
  }
  // Writers of one file's pages wait for each other in the kernel, spinning: they go one by one.
  one_by_one_ = kind == OperationKind::kWrite && caching == Caching::kBuffered;
  const std::size_t count = one_by_one_ ? std::min<std::size_t>(1, pieces_.size()) : pieces_.size();
  pieces_left_.store(count, std::memory_order_relaxed);
  // The last piece may finish, and the task go on without pieces_, before submit() returns.
  Operation* const pieces = pieces_.data();
  IoEngine& engine = owner_.engine_;
  for (std::size_t i = 0; i < count; ++i) engine.submit(pieces[i]);
}

std::int64_t FileTask::renewed_time(const struct statx& found, std::int64_t wanted) const {
  constexpr std::int64_t kSecond = 1'000'000'000;
  const std::int64_t has = nanoseconds(found.stx_mtime);
  if (is_of_the_future(has, system_now_ns())) return wanted;  // a wrong clock's
  // Whole seconds are what a filesystem has made of a finer time: such a file would otherwise be
  // renewed at every use.
  if (found.stx_mtime.tv_nsec == 0 && has >= wanted - wanted % kSecond) return has;
  return owner_.options_.renew(has, wanted);
}

void FileTask::renew(const std::string& path, std::int64_t modified_ns, Continuation next) {
  Operation op = set_modified_operation(modified_ns);
  op.path = path.c_str();
  step(op, [this, &path, next = std::move(next)](int result) {
    if (result != -EPERM) return next(result);
    Operation now = set_modified_operation(kModifiedNow);
    now.path = path.c_str();
    step(now, next);
  });
}

bool FileTask::retry(Operation& operation, int result) {
  if (result != -EINTR && result != -EAGAIN) return false;
  // Linux has let go of the descriptor even then: it may be somebody else's by now (close(2)).
  if (operation.kind == OperationKind::kClose) return false;
  const int before = operation.retries++;
  if (before >= kMaxRetries) return false;
  if (before >= kRetriesAtOnce) {
    const int doublings = std::min(before - kRetriesAtOnce, kPauseDoublings);
    operation.kind = OperationKind::kPause;
    operation.pause = {0, kFirstPauseNs << doublings};
  }
  owner_.engine_.submit(operation);
  return true;
}

void FileTask::on_complete(Operation& operation, int result) {
  const bool is_step = &operation == &step_;
  if (operation.kind == OperationKind::kPause) {  // whatever ended it, the retry is due
    operation.kind = is_step ? step_kind_ : pieces_kind_;
    return owner_.engine_.submit(operation);
  }
  if (!is_step) return on_piece(operation, result);
  if (retry(operation, result)) return;
  const Continuation next = std::move(next_);
  next(result);
}

void FileTask::on_piece(Operation& piece, int result) {
  if (retry(piece, result)) return;
  int outcome = result < 0 ? -result : 0;
  if (result >= 0) {
    const auto moved = static_cast<std::size_t>(result);
    const bool whole = moved == piece.length;
    // A direct request that ends inside a page met the end of the file (a read) or left a page to
    // be written again (a write); the next one has to start at a page in any case.
    const std::size_t kept = whole ? moved : moved / granule_ * granule_;
    piece.buffer += kept;
    piece.offset += kept;
    piece.length -= kept;
    const bool at_end = moved == 0 || (piece.kind == OperationKind::kRead && kept != moved);
    if (!whole && !at_end && kept != 0) return owner_.engine_.submit(piece);
    if (!whole) outcome = piece.kind == OperationKind::kRead ? kEndOfFile : EIO;
  }
  if (outcome != 0) {
    int expected = 0;
    pieces_outcome_.compare_exchange_strong(expected, outcome, std::memory_order_relaxed);
  }
  if (one_by_one_ && outcome == 0 && &piece != &pieces_.back()) {
    return owner_.engine_.submit(*(&piece + 1));
  }
  if (lane_ == Lane::kRead) owner_.give_back(*this, length_of(piece));
  if (pieces_left_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const std::function<void(int)> done = std::move(pieces_done_);
  done(pieces_outcome_.load(std::memory_order_relaxed));
}

std::size_t FileTask::length_of(const Operation& piece) const {
  const auto index = static_cast<std::size_t>(&piece - pieces_.data());
  const std::size_t request = owner_.options_.request_bytes;
  return std::min(request, bytes_ - index * request);
}

FileIo::FileIo(IoEngine& engine, const FileIoOptions& options)
    : engine_(engine), options_(options), caching_(options.caching) {}

FileIo::~FileIo() { shutdown(); }

void FileIo::read(FileRead request) { enqueue(make_read_task(*this, std::move(request))); }
void FileIo::write(FileWrite request) { enqueue(make_write_task(*this, std::move(request))); }
void FileIo::remove(std::string path, std::function<void(Status)> done) {
  enqueue(make_remove_task(*this, std::move(path), std::move(done)));
}

void FileIo::touch(std::string path, std::int64_t modified_ns) {
  {
    const std::lock_guard lock(mutex_);
    if (touches_.queue.size() >= kMaxWaitingTouches) {
      touches_failed_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
  }
  enqueue(make_touch_task(*this, std::move(path), modified_ns));
}

void FileIo::note_touch(int result) {
  if (result == 0) touched_.fetch_add(1, std::memory_order_relaxed);
  if (result < 0) touches_failed_.fetch_add(1, std::memory_order_relaxed);
}

void FileIo::enqueue(std::unique_ptr<FileTask> task) {
  {
    const std::lock_guard lock(mutex_);
    if (!shut_down_) {
      Lane& lane = lane_of(*task);
      const std::uint64_t group = task->group();
      lane.queue.push(group, std::move(task));
    }
  }
  if (task != nullptr) return task->cancel();
  start_admissible();
}

FileIo::Lane& FileIo::lane_of(const FileTask& task) {
  switch (task.lane()) {
    case FileTask::Lane::kRead: return reads_;
    case FileTask::Lane::kWrite: return writes_;
    case FileTask::Lane::kTouch: return touches_;
    case FileTask::Lane::kRemove: break;
  }
  return removals_;
}

std::size_t FileIo::write_depth() const {
  if (!reads_.queue.empty()) return 0;
  return reads_.bytes_in_flight > 0 ? options_.write_depth / 4 : options_.write_depth;
}

std::unique_ptr<FileTask> FileIo::next_admissible() {
  const auto fits = [](const Lane& lane, std::size_t depth) {
    return !lane.queue.empty() && (lane.bytes_in_flight == 0 ||
                                   lane.bytes_in_flight + lane.queue.front()->bytes() <= depth);
  };
  Lane* lane = nullptr;
  if (!removals_.queue.empty()) {
    lane = &removals_;
  } else if (fits(reads_, options_.read_depth)) {
    lane = &reads_;
  } else if (!touches_.queue.empty() && touches_.running < kTouchDepth) {
    lane = &touches_;
  } else if (fits(writes_, write_depth())) {
    lane = &writes_;
  } else {
    return nullptr;
  }
  std::unique_ptr<FileTask> task = lane->queue.pop();
  lane->bytes_in_flight += task->bytes();
  ++lane->running;
  ++running_;
  return task;
}

void FileIo::start_admissible() {
  for (;;) {
    std::unique_ptr<FileTask> task;
    {
      const std::lock_guard lock(mutex_);
      task = next_admissible();
    }
    if (task == nullptr) return;
    task.release()->start();  // owns itself until finish()
  }
}

void FileIo::give_back(FileTask& task, std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    lane_of(task).bytes_in_flight -= bytes;
    task.given_back_ += bytes;
  }
  start_admissible();
}

void FileIo::take_again(FileTask& task) {
  const std::lock_guard lock(mutex_);
  lane_of(task).bytes_in_flight += std::exchange(task.given_back_, 0);
}

void FileIo::finish(FileTask* task) {
  {
    const std::lock_guard lock(mutex_);
    Lane& lane = lane_of(*task);
    lane.bytes_in_flight -= task->bytes() - task->given_back_;
    --lane.running;
  }
  start_admissible();
  task->conclude();
}

void FileIo::retire(FileTask* concluded) {
  const std::unique_ptr<FileTask> task(concluded);
  task->report();
  const std::lock_guard lock(mutex_);
  --running_;
  all_done_.notify_all();
}

void FileIo::refuse_direct() {
  Caching expected = Caching::kDirect;
  if (caching_.compare_exchange_strong(expected, Caching::kBuffered)) {
    fallbacks_.fetch_add(1, std::memory_order_relaxed);
  }
}

void FileIo::cancel(std::uint64_t group) {
  std::vector<std::unique_ptr<FileTask>> queued;
  {
    const std::lock_guard lock(mutex_);
    queued = reads_.queue.remove(group);
  }
  for (const std::unique_ptr<FileTask>& task : queued) task->cancel();
  if (!queued.empty()) start_admissible();  // writes that gave way to them
}

void FileIo::begin_shutdown() {
  std::vector<std::unique_ptr<FileTask>> queued;
  {
    const std::lock_guard lock(mutex_);
    shut_down_ = true;
    for (Lane* lane : {&reads_, &writes_, &removals_, &touches_}) {
      std::vector<std::unique_ptr<FileTask>> tasks = lane->queue.clear();
      std::move(tasks.begin(), tasks.end(), std::back_inserter(queued));
    }
  }
  for (const std::unique_ptr<FileTask>& task : queued) task->cancel();
}

void FileIo::shutdown() {
  begin_shutdown();
  std::unique_lock lock(mutex_);
  all_done_.wait(lock, [this] { return running_ == 0; });
}

bool FileIo::wait_idle(std::chrono::duration<double> timeout) {
  std::unique_lock lock(mutex_);
  return all_done_.wait_for(lock, timeout, [this] { return running_ == 0; });
}

bool FileIo::is_reading() const {
  const std::lock_guard lock(mutex_);
  return reads_.running > 0;
}

std::size_t FileIo::read_bytes_in_flight() const {
  const std::lock_guard lock(mutex_);
  return reads_.bytes_in_flight;
}

std::size_t FileIo::write_bytes_in_flight() const {
  const std::lock_guard lock(mutex_);
  return writes_.bytes_in_flight;
}

}  // namespace lmkv
