#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <stdexcept>

#include "io/fault_spec.hpp"

namespace lmkv {
namespace {

using namespace std::chrono_literals;

Operation operation(OperationKind kind, int flags = 0) {
  Operation op;
  op.kind = kind;
  op.flags = flags;
  return op;
}

std::string error_of(const std::string& text) {
  try {
    static_cast<void>(parse_faults(text));
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "none";
}

TEST(FaultSpec, TextsAreRead) {
  EXPECT_TRUE(parse_faults("").empty());
  EXPECT_TRUE(parse_faults("  ").empty());
  const FaultSpec spec = parse_faults(
      "eio:0.01, delay:20ms,reorder:0.3,write.enospc:0.05,delay:1.5s:0.5,hang,read.reorder:7us");
  const FaultSpec expected = {
      {FaultKind::kEio, 0.01, 0us, {}},
      {FaultKind::kDelay, 1, 20ms, {}},
      {FaultKind::kReorder, 0.3, 5ms, {}},
      {FaultKind::kEnospc, 0.05, 0us, OperationKind::kWrite},
      {FaultKind::kDelay, 0.5, 1500ms, {}},
      {FaultKind::kHang, 1, 0us, {}},
      {FaultKind::kReorder, 1, 7us, OperationKind::kRead},
  };
  EXPECT_EQ(spec, expected);
}

TEST(FaultSpec, EveryKindIsReadByItsName) {
  for (const FaultKind kind : kFaultKinds) {
    const std::string time = kind == FaultKind::kDelay ? ":1ms" : "";
    EXPECT_EQ(parse_faults(std::string(name_of(kind)) + time + ":0.25").at(0).kind, kind);
  }
}

TEST(FaultSpec, AWrongWordIsAnErrorThatNamesTheNearest) {
  EXPECT_NE(error_of("eoi:0.1").find("the nearest is eio"), std::string::npos);
  EXPECT_NE(error_of("enospace").find("the nearest is enospc"), std::string::npos);
  EXPECT_NE(error_of("opn.eio").find("the nearest is open"), std::string::npos);
  EXPECT_NE(error_of("eio:0.1,,hang").find("no kind"), std::string::npos);
}

TEST(FaultSpec, WhatCannotBeIsAnError) {
  for (const char* text :
       {"eio:2", "eio:-0.1", "eio:nan", "eio:x", "eio:0.1:0.2", "eio:20ms", "delay", "delay:0.5",
        "delay:20", "delay:-1ms", "delay:2h", "delay:0ms", "delay:1ms:0.5:0.5", "hang:", ".eio",
        "open.short", "stat.corrupt", "close.truncate", "close.lost"}) {
    EXPECT_NE(error_of(text), "none") << text;
  }
}

TEST(FaultSpec, WithoutAnOperationAFaultHappensWhereAKernelMayAnswerSo) {
  const auto can = [](const char* text, const Operation& op) {
    return parse_faults(text).at(0).can_happen_to(op);
  };
  EXPECT_TRUE(can("enospc", operation(OperationKind::kOpen, O_CREAT)));
  EXPECT_FALSE(can("enospc", operation(OperationKind::kOpen)));
  EXPECT_FALSE(can("edquot", operation(OperationKind::kRead)));
  EXPECT_TRUE(can("read.edquot", operation(OperationKind::kRead)));
  EXPECT_TRUE(can("erofs", operation(OperationKind::kUnlink)));
  EXPECT_FALSE(can("erofs", operation(OperationKind::kClose)));
  EXPECT_FALSE(can("short", operation(OperationKind::kStat)));
  EXPECT_TRUE(can("hang", operation(OperationKind::kStat)));
  EXPECT_FALSE(can("write.hang", operation(OperationKind::kStat)));
  EXPECT_TRUE(can("lost", operation(OperationKind::kOpen, O_CREAT | O_EXCL)));
  EXPECT_FALSE(can("open.lost", operation(OperationKind::kOpen)));
  EXPECT_FALSE(can("lost", operation(OperationKind::kRead)));
}

TEST(FaultSpec, ErrnosAreTheKernels) {
  EXPECT_EQ(errno_of(FaultKind::kEstale, OperationKind::kStat), ESTALE);
  EXPECT_EQ(errno_of(FaultKind::kShort, OperationKind::kRead), 0);
  EXPECT_EQ(errno_of(FaultKind::kLost, OperationKind::kMakeDirectory), EEXIST);
  EXPECT_EQ(errno_of(FaultKind::kLost, OperationKind::kRename), ENOENT);
}

}  // namespace
}  // namespace lmkv
