// A ring of io_uring's as lmkv wants it, and its operations as entries of one.
#pragma once

#include <liburing.h>

#include <string>

#include "io/io_engine.hpp"

namespace lmkv {

inline constexpr unsigned kRingEntries = 256;

// Opens `ring` and tries it, by the thread that will use it. Returns 0, with `setup` saying what
// this kernel has given, or -errno.
int open_ring(io_uring& ring, std::string& setup);

// kSetModified and kSetMode have no entry. `slab`: the buffer's number in the ring's table, or -1.
// The operation stays where it is until it is done.
void prepare_entry(io_uring_sqe* entry, Operation& operation, int slab);

}  // namespace lmkv
