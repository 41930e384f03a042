// A queue of several owners' items that serves the owners in turns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <list>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lmkv {

// One owner's items leave in the order in which they came. Between two items of one owner every
// other owner that has any gets one: 500 chunks of one request do not keep another's two waiting.
// No locks of its own.
template <typename T>
class FairQueue {
 public:
  using Owner = std::uint64_t;

  [[nodiscard]] bool empty() const { return turns_.empty(); }
  [[nodiscard]] std::size_t size() const { return size_; }

  void push(Owner owner, T item) {
    auto [place, is_new] = places_.try_emplace(owner, turns_.end());
    if (is_new) place->second = turns_.insert(turns_.end(), {owner, {}});
    place->second->items.push_back(std::move(item));
    ++size_;
  }

  // Of a queue that is not empty: what pop() would return.
  [[nodiscard]] const T& front() const { return turns_.front().items.front(); }

  T pop() {
    Turn& turn = turns_.front();
    T item = std::move(turn.items.front());
    turn.items.pop_front();
    --size_;
    if (turn.items.empty()) {
      places_.erase(turn.owner);
      turns_.pop_front();
    } else {
      turns_.splice(turns_.end(), turns_, turns_.begin());
    }
    return item;
  }

  // Takes out everything of one owner.
  std::vector<T> remove(Owner owner) {
    const auto place = places_.find(owner);
    if (place == places_.end()) return {};
    std::vector<T> removed = items_of(*place->second);
    turns_.erase(place->second);
    places_.erase(place);
    size_ -= removed.size();
    return removed;
  }

  std::vector<T> clear() {
    std::vector<T> removed;
    for (Turn& turn : turns_) {
      std::vector<T> items = items_of(turn);
      removed.insert(removed.end(), std::make_move_iterator(items.begin()),
                     std::make_move_iterator(items.end()));
    }
    turns_.clear();
    places_.clear();
    size_ = 0;
    return removed;
  }

 private:
  struct Turn {
    Owner owner;
    std::deque<T> items;  // never empty
  };

  static std::vector<T> items_of(Turn& turn) {
    return {std::make_move_iterator(turn.items.begin()), std::make_move_iterator(turn.items.end())};
  }

  std::list<Turn> turns_;  // the next one first
  std::unordered_map<Owner, typename std::list<Turn>::iterator> places_;
  std::size_t size_ = 0;
};

}  // namespace lmkv
