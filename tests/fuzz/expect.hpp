// What the fuzz targets share: a finding is a crash, which libFuzzer keeps the input of.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace lmkv::fuzz {

inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "FINDING: %s\n", what);
  std::abort();
}

// In TMPDIR, and gone when the process ends as it should.
class Scratch {
 public:
  Scratch() {
    const char* const given = std::getenv("TMPDIR");
    std::string pattern = given != nullptr ? given : "/tmp";
    pattern += "/lmkv-fuzz-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
    path_ = pattern;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace lmkv::fuzz
