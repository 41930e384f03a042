// Counters since start. Every drop, miss and failure has one (architecture.md, invariant 10).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>

namespace lmkv {

struct Stats {
  using Counter = std::atomic<std::uint64_t>;

  Counter chunks_stored{0};           // new files
  Counter bytes_stored{0};            // their sizes, header pages included
  Counter stores_already_present{0};  // the directory had the chunk
  Counter stores_dropped{0};          // no free slab, closing, or the device is lost
  Counter stores_dropped_full{0};     // the directory is at its capacity, or the disk at its floor
  Counter stores_dropped_out_of_service{0};  // it has failed again and again
  Counter stores_failed{0};                  // the filesystem refused or failed
  Counter gathers_failed{0};
  Counter chunks_loaded{0};       // into the KV cache, from memory or a tier
  Counter bytes_loaded{0};        // read from a tier and verified
  Counter memory_hits{0};         // chunks loaded that were still in a slab
  Counter chunks_awaited{0};      // of these: another load or engine was bringing them
  Counter loads_cancelled{0};     // chunks not loaded: nobody waited for them any more
  Counter loads_failed{0};        // chunks not loaded, for any other reason
  Counter loads_timed_out{0};     // of these: given up after load_timeout
  Counter loads_refused{0};       // of these: not tried, the directory being out of service
  Counter chunks_missing{0};      // of these: gone between lookup and load
  Counter chunks_bad{0};          // of these: not what was asked for, or damaged
  Counter chunks_bad_removed{0};  // bad files, and remote chunks, that are gone now

  // With a remote tier.
  Counter remote_hits{0};           // chunks that it brought
  Counter bytes_loaded_remote{0};   // of bytes_loaded
  Counter remote_chunks_stored{0};  // new there
  Counter remote_bytes_stored{0};
  Counter remote_stores_dropped{0};  // too many on their way, out of service, full, or closing
  Counter remote_stores_failed{0};
  Counter chunks_promoted{0};  // from there to the directory
  Counter bytes_promoted{0};
  Counter promotions_dropped{0};  // as remote_stores_dropped
  Counter promotions_failed{0};

  [[nodiscard]] std::map<std::string, std::uint64_t> snapshot() const {
    return {{"chunks_stored", chunks_stored},
            {"bytes_stored", bytes_stored},
            {"stores_already_present", stores_already_present},
            {"stores_dropped", stores_dropped},
            {"stores_dropped_full", stores_dropped_full},
            {"stores_dropped_out_of_service", stores_dropped_out_of_service},
            {"stores_failed", stores_failed},
            {"gathers_failed", gathers_failed},
            {"chunks_loaded", chunks_loaded},
            {"bytes_loaded", bytes_loaded},
            {"memory_hits", memory_hits},
            {"chunks_awaited", chunks_awaited},
            {"loads_cancelled", loads_cancelled},
            {"loads_failed", loads_failed},
            {"loads_refused", loads_refused},
            {"loads_timed_out", loads_timed_out},
            {"chunks_missing", chunks_missing},
            {"chunks_bad", chunks_bad},
            {"chunks_bad_removed", chunks_bad_removed},
            {"remote_hits", remote_hits},
            {"bytes_loaded_remote", bytes_loaded_remote},
            {"remote_chunks_stored", remote_chunks_stored},
            {"remote_bytes_stored", remote_bytes_stored},
            {"remote_stores_dropped", remote_stores_dropped},
            {"remote_stores_failed", remote_stores_failed},
            {"chunks_promoted", chunks_promoted},
            {"bytes_promoted", bytes_promoted},
            {"promotions_dropped", promotions_dropped},
            {"promotions_failed", promotions_failed}};
  }
};

}  // namespace lmkv
