// Part of arena_slots.hpp.
#pragma once

namespace lmkv {

// ---- Changes

template <class Steps>
std::optional<std::uint32_t> ArenaSlots<Steps>::take(std::uint8_t member, std::uint32_t node,
                                                     std::uint64_t now, const SlotName* wanted,
                                                     bool is_remote) {
  std::optional<std::uint32_t> slot = take_first(control_->unused, node);
  if (!slot) slot = evict();
  if (!slot) return std::nullopt;
  own(*slot, member, now, is_remote);
  if (wanted != nullptr && lookup(*wanted) == kNoSlot) {
    write_name(*slot, *wanted);
    SlotWord named = word(*slot);
    named.named = true;
    put_word(*slot, named);
    add_to_index(*slot);
  }
  return slot;
}

template <class Steps>
std::optional<std::uint32_t> ArenaSlots<Steps>::take_bare(std::uint8_t member, std::uint32_t node,
                                                          std::uint64_t now) {
  const std::optional<std::uint32_t> slot = take_first(control_->bare, node);
  if (slot) own(*slot, member, now, false);
  return slot;
}

template <class Steps>
void ArenaSlots<Steps>::own(std::uint32_t slot, std::uint8_t member, std::uint64_t now,
                            bool is_remote) {
  put(slots_[slot].since, now);
  SlotWord mine;
  mine.state = SlotState::kFilling;
  mine.owner = member;
  mine.is_remote = is_remote;
  mine.has_pages = word(slot).has_pages;
  put_word(slot, mine);
}

template <class Steps>
void ArenaSlots<Steps>::set_pages(std::uint32_t slot) {
  SlotWord changed = word(slot);
  changed.has_pages = true;
  put_word(slot, changed);
}

template <class Steps>
bool ArenaSlots<Steps>::publish(std::uint8_t member, std::uint32_t slot, const SlotName& name) {
  const std::uint32_t other = lookup(name);
  if (word(slot).named && other != slot) unname(slot);
  if (other != kNoSlot && other != slot) {
    if (word(other).state == SlotState::kReady) return false;
    unname(other);  // whoever fills it will find this one
  }
  if (other != slot) write_name(slot, name);
  put(slots_[slot].holders, bit(member));
  put(slots_[slot].used, next_tick());
  SlotWord ready = word(slot);
  ready.state = SlotState::kReady;
  ready.named = false;
  ready.is_remote = false;
  put_word(slot, ready);
  if (other != slot) add_to_index(slot);
  push_back(control_->cached, slot);
  return true;
}

template <class Steps>
void ArenaSlots<Steps>::disclaim(std::uint32_t slot) {
  SlotWord changed = word(slot);
  if (!changed.named) return;
  unname(slot);
  changed.named = false;
  put_word(slot, changed);
}

template <class Steps>
void ArenaSlots<Steps>::give_back(std::uint32_t slot) {
  if (word(slot).named) unname(slot);
  SlotWord unused;
  unused.has_pages = word(slot).has_pages;
  put_word(slot, unused);
  push_back(unused_list_of(slot), slot);
}

template <class Steps>
typename ArenaSlots<Steps>::Found ArenaSlots<Steps>::find(std::uint8_t member,
                                                          const SlotName& name) {
  const std::uint32_t slot = lookup(name);
  if (slot == kNoSlot) return {};
  if (word(slot).state == SlotState::kFilling) {
    return {SlotState::kFilling, slot, get(slots_[slot].since)};
  }
  Steps::step();
  slots_[slot].holders.fetch_or(bit(member), std::memory_order_acquire);
  put(slots_[slot].used, next_tick());
  unlink(control_->cached, slot);
  push_back(control_->cached, slot);
  return {SlotState::kReady, slot, 0};
}

template <class Steps>
bool ArenaSlots<Steps>::has(const SlotName& name) const {
  const std::uint32_t slot = lookup(name);
  return slot != kNoSlot && word(slot).state == SlotState::kReady;
}

template <class Steps>
void ArenaSlots<Steps>::reap(std::uint8_t member, std::uint64_t now) {
  for (std::uint32_t slot = 0; slot < count(); ++slot) {
    if ((holders(slot) & bit(member)) != 0) release(member, slot);
    SlotWord found = word(slot);
    if (found.state != SlotState::kFilling || found.owner != member) continue;
    if (found.named) unname(slot);
    put(slots_[slot].since, now);
    found.state = SlotState::kOrphaned;
    found.named = false;
    put_word(slot, found);
    put(control_->orphans, get(control_->orphans) + 1);
  }
  put(control_->members[member].joined, std::uint32_t{0});
}

template <class Steps>
std::uint32_t ArenaSlots<Steps>::readmit(std::uint64_t now) {
  if (get(control_->orphans) == 0) return 0;
  std::uint32_t left = 0;
  for (std::uint32_t slot = 0; slot < count(); ++slot) {
    if (word(slot).state != SlotState::kOrphaned) continue;
    const std::uint64_t since = get(slots_[slot].since);
    const std::uint64_t whole = word(slot).is_remote ? kRemoteOrphanSeconds : kOrphanSeconds;
    if (now >= since && now - since >= whole) {
      give_back(slot);
      continue;
    }
    ++left;
    // Another time namespace's clock was ahead of ours: its time begins anew.
    if (now < since) put(slots_[slot].since, now);
  }
  put(control_->orphans, left);
  return left;
}

template <class Steps>
void ArenaSlots<Steps>::repair() {
  const auto empty = [](SlotList& list) {
    put(list.first, kNoSlot);
    put(list.last, kNoSlot);
    put(list.length, std::uint32_t{0});
  };
  for (SlotList& list : control_->unused) empty(list);
  for (SlotList& list : control_->bare) empty(list);
  empty(control_->cached);
  for (std::uint32_t i = 0; i < header_->bucket_count; ++i) put(buckets_[i], kNoSlot);

  std::uint32_t orphans = 0;
  std::uint64_t tick = get(control_->tick);
  std::vector<std::uint32_t> ready;
  for (std::uint32_t slot = 0; slot < count(); ++slot) {
    const SlotWord found = word(slot);
    if (found.state == SlotState::kFree) push_back(unused_list_of(slot), slot);
    if (found.state == SlotState::kReady) {
      ready.push_back(slot);
      tick = std::max(tick, get(slots_[slot].used));
    }
    if (found.state == SlotState::kReady || found.named) add_to_index(slot);
    if (found.state == SlotState::kOrphaned) ++orphans;
  }
  std::ranges::sort(ready, {}, [this](std::uint32_t slot) { return get(slots_[slot].used); });
  for (const std::uint32_t slot : ready) push_back(control_->cached, slot);
  put(control_->orphans, orphans);
  put(control_->tick, tick);
  put(control_->repairs, get(control_->repairs) + 1);
}

// ---- Lists and index

template <class Steps>
void ArenaSlots<Steps>::push_back(SlotList& list, std::uint32_t slot) {
  const std::uint32_t last = get(list.last);
  put(slots_[slot].before, last);
  put(slots_[slot].behind, kNoSlot);
  if (last == kNoSlot) {
    put(list.first, slot);
  } else {
    put(slots_[last].behind, slot);
  }
  put(list.last, slot);
  put(list.length, get(list.length) + 1);
}

template <class Steps>
void ArenaSlots<Steps>::unlink(SlotList& list, std::uint32_t slot) {
  const std::uint32_t before = get(slots_[slot].before);
  const std::uint32_t behind = get(slots_[slot].behind);
  if (before == kNoSlot) {
    put(list.first, behind);
  } else {
    put(slots_[before].behind, behind);
  }
  if (behind == kNoSlot) {
    put(list.last, before);
  } else {
    put(slots_[behind].before, before);
  }
  put(list.length, get(list.length) - 1);
}

// The last to be given back is the first to be taken: its memory was touched last.
template <class Steps>
std::optional<std::uint32_t> ArenaSlots<Steps>::take_first(SlotList (&lists)[kMostArenaNodes],
                                                           std::uint32_t node) {
  for (std::uint32_t i = 0; i < header_->node_count; ++i) {
    SlotList& list = lists[(node + i) % header_->node_count];
    const std::uint32_t slot = get(list.last);
    if (slot == kNoSlot) continue;
    unlink(list, slot);
    return slot;
  }
  return std::nullopt;
}

template <class Steps>
std::optional<std::uint32_t> ArenaSlots<Steps>::evict() {
  std::uint32_t slot = get(control_->cached.first);
  while (slot != kNoSlot && holders(slot) != 0) slot = get(slots_[slot].behind);
  if (slot == kNoSlot) return std::nullopt;
  remove_from_index(slot);
  unlink(control_->cached, slot);
  return slot;
}

template <class Steps>
Shared32& ArenaSlots<Steps>::bucket_of(const SlotName& name) const {
  // Keys are hashes already; ranks of one key must not share a bucket.
  const std::uint64_t hash = name.key_words[0] ^ (name.rank * 0x9e37'79b9'7f4a'7c15U);
  return buckets_[(hash ^ hash >> 32) & (header_->bucket_count - 1)];
}

template <class Steps>
SlotName ArenaSlots<Steps>::name(std::uint32_t slot) const {
  SlotName found;
  for (std::size_t i = 0; i < 4; ++i) {
    found.namespace_words[i] = get(slots_[slot].name_space[i]);
    found.key_words[i] = get(slots_[slot].key[i]);
  }
  found.rank = get(slots_[slot].rank);
  return found;
}

template <class Steps>
std::uint32_t ArenaSlots<Steps>::lookup(const SlotName& wanted) const {
  std::uint32_t slot = get(bucket_of(wanted));
  while (slot != kNoSlot && name(slot) != wanted) slot = get(slots_[slot].chain);
  return slot;
}

template <class Steps>
void ArenaSlots<Steps>::write_name(std::uint32_t slot, const SlotName& name) {
  for (std::size_t i = 0; i < 4; ++i) {
    put(slots_[slot].name_space[i], name.namespace_words[i]);
    put(slots_[slot].key[i], name.key_words[i]);
  }
  put(slots_[slot].rank, name.rank);
}

template <class Steps>
void ArenaSlots<Steps>::add_to_index(std::uint32_t slot) {
  Shared32& bucket = bucket_of(name(slot));
  put(slots_[slot].chain, get(bucket));
  put(bucket, slot);
}

template <class Steps>
void ArenaSlots<Steps>::remove_from_index(std::uint32_t slot) {
  Shared32* at = &bucket_of(name(slot));
  while (get(*at) != slot) at = &slots_[get(*at)].chain;
  put(*at, get(slots_[slot].chain));
}

template <class Steps>
void ArenaSlots<Steps>::unname(std::uint32_t slot) {
  remove_from_index(slot);
  SlotWord filling = word(slot);
  filling.named = false;
  put_word(slot, filling);
}

template <class Steps>
std::uint64_t ArenaSlots<Steps>::next_tick() {
  const std::uint64_t tick = get(control_->tick) + 1;
  put(control_->tick, tick);
  return tick;
}

// ---- Looking at it

template <class Steps>
ArenaCounts ArenaSlots<Steps>::counts() const {
  ArenaCounts counts;
  counts.total = count();
  for (std::uint32_t slot = 0; slot < count(); ++slot) {
    switch (word(slot).state) {
      case SlotState::kFree:
        ++counts.unused;
        if (!word(slot).has_pages) ++counts.bare;
        break;
      case SlotState::kFilling: ++counts.filling; break;
      case SlotState::kReady:
        ++counts.ready;
        if (holders(slot) != 0) ++counts.held;
        break;
      case SlotState::kOrphaned: ++counts.orphaned; break;
    }
  }
  return counts;
}

template <class Steps>
const char* ArenaSlots<Steps>::fault() const {
  std::vector<bool> listed(count());
  // At most as many steps as there are slots: a ring would never end.
  const auto walk = [&](const SlotList& list, SlotState state) -> const char* {
    std::uint32_t before = kNoSlot;
    std::uint32_t length = 0;
    for (std::uint32_t slot = get(list.first); slot != kNoSlot; slot = get(slots_[slot].behind)) {
      if (slot >= count() || listed[slot]) return "a slot is in a list twice";
      listed[slot] = true;
      if (word(slot).state != state) return "a slot is in the wrong list";
      if (get(slots_[slot].before) != before) return "a list does not go both ways";
      before = slot;
      ++length;
    }
    if (get(list.length) != length) return "a list's length is wrong";
    return get(list.last) == before ? nullptr : "a list's end is wrong";
  };
  for (std::size_t i = 0; i < kMostArenaNodes; ++i) {
    if (const char* fault = walk(control_->unused[i], SlotState::kFree)) return fault;
    if (const char* fault = walk(control_->bare[i], SlotState::kFree)) return fault;
  }
  if (const char* fault = walk(control_->cached, SlotState::kReady)) return fault;

  std::uint32_t orphans = 0;
  for (std::uint32_t slot = 0; slot < count(); ++slot) {
    const SlotWord found = word(slot);
    const bool is_listed = found.state == SlotState::kFree || found.state == SlotState::kReady;
    if (listed[slot] != is_listed) return "a slot is in no list";
    const bool is_findable = found.state == SlotState::kReady || found.named;
    if (is_findable && lookup(name(slot)) != slot) return "a slot is not the one of its name";
    if (found.named && found.state != SlotState::kFilling) return "only what is filled is named";
    if (found.state == SlotState::kFree && holders(slot) != 0) return "what is unused is read";
    if (found.state == SlotState::kOrphaned) ++orphans;
  }
  if (orphans != get(control_->orphans)) return "orphans are miscounted";
  std::uint32_t indexed = 0;
  for (std::uint32_t i = 0; i < header_->bucket_count; ++i) {
    for (std::uint32_t slot = get(buckets_[i]); slot != kNoSlot; slot = get(slots_[slot].chain)) {
      const SlotWord found = word(slot);
      if (found.state != SlotState::kReady && !found.named) return "what is gone is in the index";
      if (++indexed > count()) return "the index goes round";
    }
  }
  return "";
}

}  // namespace lmkv
