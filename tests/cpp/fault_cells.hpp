// The cells of the fault matrix: what happens to which operation, and what it has to end in.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "io/fault_spec.hpp"
#include "io/root_probe.hpp"

namespace lmkv::test {

enum class End {
  kDone,     // stored, loaded
  kFailed,   // not stored, not loaded; a file that was there stays
  kMissing,  // load: as if there were no such file
  kBad,      // store: it will be a bad file; load: a bad file, which is removed
  kStuck,    // load: a bad file that cannot be removed
  kEither,   // each chunk its own
};

struct Cell {
  std::string name;
  std::string spec;
  End end{};
  std::uint64_t touches_failed = 0;
  std::size_t temporaries = 0;
  DirectIoChoice direct_io = DirectIoChoice::kAuto;
};

inline void PrintTo(const Cell& cell, std::ostream* out) { *out << cell.spec; }

inline constexpr std::uint32_t kChunks =
    2;  // of a cell: fewer failures in a row than take a root out

inline constexpr std::array kErrnos = {FaultKind::kEio, FaultKind::kEnospc, FaultKind::kEdquot,
                                       FaultKind::kEstale, FaultKind::kErofs};

// "write.eio" and 0.5 are cell "write_eio" of spec "write.eio:0.5".
inline Cell cell(std::string what, End end, const std::string& rest = "") {
  std::string name = what;
  std::ranges::replace_if(name, [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return {name, what + rest, end};
}

inline std::vector<Cell> cells_of_both_ways() {
  Cell buffered = cell("short_buffered", End::kDone);
  buffered.spec = "short";
  buffered.direct_io = DirectIoChoice::kOff;
  Cell all = cell("everything", End::kEither);
  all.spec =
      "eio:0.02,estale:0.02,enospc:0.02,erofs:0.02,edquot:0.02,eagain:0.3,eintr:0.2,short:0.5,"
      "truncate:0.05,corrupt:0.05,delay:2ms:0.2,reorder:0.3";
  Cell late = cell("short_and_late", End::kDone);
  late.spec = "short:0.9,delay:1ms:0.5,reorder:3ms";
  return {cell("short", End::kDone),
          buffered,
          cell("delay", End::kDone, ":3ms"),
          cell("reorder", End::kDone, ":3ms"),
          cell("hang", End::kDone),
          all,
          late};
}

inline std::vector<Cell> store_cells() {
  std::vector<Cell> cells = cells_of_both_ways();
  for (const FaultKind kind : kErrnos) {
    const std::string name(name_of(kind));
    cells.push_back(cell(name, End::kFailed));
    for (const char* operation :
         {"enter", "stat", "open", "allocate", "write", "sync", "close", "rename",
          "mkdir"}) {  // stat: of the root, before a directory is made
      cells.push_back(cell(operation + ("." + name), End::kFailed));
    }
    cells.push_back(cell("touch." + name, End::kDone));
    cells.back().touches_failed = kChunks;
    // Nothing more can be done for these: the next scan but an hour removes them.
    cells.push_back(cell("write.eio,unlink." + name, End::kFailed));
    cells.back().temporaries = kChunks;
  }
  for (const char* passing : {"eagain", "eintr"}) {
    const std::string name(passing);
    for (const char* operation :
         {"stat", "open", "allocate", "write", "sync", "touch", "rename", "mkdir"}) {
      cells.push_back(cell(operation + ("." + name), End::kDone, ":0.95"));
    }
    cells.push_back(cell("close." + name, End::kFailed));  // never closed twice
    cells.push_back(cell("write.eio,unlink." + name, End::kFailed, ":0.95"));
    cells.push_back(cell(name + "_for_ever", End::kFailed));
    cells.back().spec = "write." + name;
  }
  for (const char* operation : {"stat", "open", "allocate", "write", "touch", "close", "rename"}) {
    cells.push_back(cell(operation + std::string(".hang"), End::kDone));
  }
  for (const FaultKind kind : kErrnos) {
    cells.push_back(cell("chmod." + std::string(name_of(kind)), End::kFailed));
  }
  // What was done although its answer was lost.
  cells.push_back(cell("rename.lost", End::kDone));
  cells.push_back(cell("mkdir.lost", End::kDone));
  cells.push_back(cell("open.lost", End::kFailed));  // twice
  cells.push_back(cell("write.eio,unlink.lost", End::kFailed));
  cells.push_back(cell("rename.lost_eio", End::kDone));
  for (const char* operation : {"open", "allocate", "write", "sync", "close", "mkdir", "chmod"}) {
    cells.push_back(cell(operation + std::string(".lost_eio"), End::kFailed));
  }
  cells.push_back(cell("touch.lost_eio", End::kDone));
  cells.back().touches_failed = kChunks;
  // Only of the page cache.
  for (const FaultKind kind : kErrnos) {
    cells.push_back(cell("writeback." + std::string(name_of(kind)), End::kFailed));
    cells.back().direct_io = DirectIoChoice::kOff;
  }
  cells.push_back(cell("drop.eio", End::kDone));
  cells.back().direct_io = DirectIoChoice::kOff;
  cells.push_back(cell("truncate", End::kBad));
  cells.push_back(cell("corrupt", End::kBad));
  for (const char* name : {"truncate", "corrupt"}) {
    cells.push_back(cell(name + std::string("_buffered"), End::kBad));
    cells.back().spec = name;
    cells.back().direct_io = DirectIoChoice::kOff;
  }
  return cells;
}

inline std::vector<Cell> load_cells() {
  std::vector<Cell> cells = cells_of_both_ways();
  for (const FaultKind kind : kErrnos) {
    const std::string name(name_of(kind));
    const bool stale = kind == FaultKind::kEstale;
    const End end = stale ? End::kMissing : End::kFailed;
    for (const char* operation : {"enter", "stat", "open"}) {
      cells.push_back(cell(operation + ("." + name), end));
    }
    for (const std::size_t back : {2, 3}) {  // a touch looks first
      cells[cells.size() - back].touches_failed = stale ? 0 : kChunks;
    }
    cells.push_back(cell("read." + name, kind == FaultKind::kEio ? End::kBad : end));
    cells.push_back(cell("close." + name, End::kDone));
    cells.push_back(cell("touch." + name, End::kDone));
    cells.back().touches_failed = stale ? 0 : kChunks;
    if (!stale) cells.push_back(cell("truncate,unlink." + name, End::kStuck));
  }
  cells.push_back(cell("truncate,unlink.lost", End::kBad));
  cells.push_back(cell("open.lost_eio", End::kFailed));
  cells.push_back(cell("read.lost_eio", End::kBad));
  cells.push_back(cell("close.lost_eio", End::kDone));
  cells.push_back(cell("touch.lost_eio", End::kDone));
  cells.back().touches_failed = kChunks;
  cells.push_back(cell("eio", End::kFailed));
  cells.back().touches_failed = kChunks;
  cells.push_back(cell("estale", End::kMissing));
  cells.push_back(cell("enospc", End::kDone));
  cells.push_back(cell("edquot", End::kDone));
  cells.push_back(cell("erofs", End::kDone));
  cells.back().touches_failed = kChunks;
  for (const char* passing : {"eagain", "eintr"}) {
    const std::string name(passing);
    for (const char* operation : {"enter", "stat", "open", "read", "touch"}) {
      cells.push_back(cell(operation + ("." + name), End::kDone, ":0.95"));
    }
    cells.push_back(cell("close." + name, End::kDone));
    cells.push_back(cell("truncate,unlink." + name, End::kBad, ":0.95"));
    cells.push_back(cell(name + "_for_ever", End::kFailed));
    cells.back().spec = "read." + name;
  }
  for (const char* operation : {"stat", "open", "read", "close"}) {
    cells.push_back(cell(operation + std::string(".hang"), End::kDone));
  }
  cells.push_back(cell("drop.eio", End::kDone));
  cells.back().direct_io = DirectIoChoice::kOff;
  cells.push_back(cell("truncate", End::kBad));
  cells.push_back(cell("corrupt", End::kBad));
  cells.push_back(cell("corrupt_buffered", End::kBad));
  cells.back().spec = "corrupt";
  cells.back().direct_io = DirectIoChoice::kOff;
  return cells;
}

}  // namespace lmkv::test
