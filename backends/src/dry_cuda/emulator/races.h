// Looks for races: two threads use the same memory in the same launch, one of them writes, and no barrier lies between. The compiler
// reports every access of a kernel (-fsanitize=thread) to the functions below, which stand for the library that it is meant for.
#pragma once

#include <stdint.h>
#include <stdio.h>

#include <memory>
#include <unordered_map>

#include "runner.h"

namespace races {

constexpr int WARP = 32;
constexpr int ALL_LANES = -1;
// Accesses are told apart by pairs of bytes, the size of the smallest numbers that threads write side by side.
constexpr uintptr_t GRAIN = 2;
constexpr uintptr_t PAGE_BYTES = 4096;
constexpr uintptr_t STACK_BYTES = 256 << 10;

// When and by whom memory was used.
struct Access {
  uint32_t launch = 0; // 0: never
  uint32_t block, barrier, warp_barrier;
  int16_t warp, lane;
};

// The last write, and the last reads of two warps.
struct Cell {
  Access write, reads[2];
};

struct Page {
  Cell cells[PAGE_BYTES / GRAIN];
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_number = 0;
Page *last_page = nullptr;

uint32_t launch = 0;
uint32_t block_barriers = 0;                                // that the blocks of the launch have passed
uint32_t warp_barriers[1024 / WARP];                        // that each warp has passed
uintptr_t shared_start = 0, shared_end = 0;
bool of_warp = false;                                       // whether the running thread acts for its whole warp
char message[512];

Page &page_of(uintptr_t address) {
  uintptr_t number = address / PAGE_BYTES;
  if (number != last_number || !last_page) {
    auto &page = pages[number];
    if (!page) {
      page = std::make_unique<Page>();
    }
    last_number = number;
    last_page = page.get();
  }
  return *last_page;
}

// Returns whether nothing orders an earlier access before one of now.
bool is_unordered(const Access &earlier, const Access &now, bool shared) {
  if (earlier.launch != now.launch) {
    return false;
  }
  if (earlier.block != now.block) {
    // A block's shared memory is gone when it ends.
    return !shared;
  }
  if (earlier.barrier != now.barrier) {
    return false;
  }
  if (earlier.warp != now.warp) {
    return true;
  }
  bool same_thread = earlier.lane == now.lane && now.lane != ALL_LANES;
  return earlier.warp_barrier == now.warp_barrier && !same_thread;
}

void report(uintptr_t address, bool shared, const Access &earlier, const Access &now) {
  if (message[0]) {
    return;
  }
  char place[64];
  if (shared) {
    snprintf(place, sizeof place, "byte %zu of its shared memory", size_t(address - shared_start));
  } else {
    snprintf(place, sizeof place, "a tensor's value at %#zx", size_t(address));
  }
  snprintf(message, sizeof message,
           "a race: warp %d (lane %d) of block %u and warp %d (lane %d) of block %u use %s, one of them writes, and no barrier "
           "lies between (lane -1: all)",
           earlier.warp, earlier.lane, earlier.block, now.warp, now.lane, now.block, place);
}

void remember_read(Cell &cell, const Access &now) {
  for (Access &read : cell.reads) {
    bool same_time = read.launch == now.launch && read.block == now.block && read.barrier == now.barrier;
    if (!same_time) {
      read = now;
      return;
    }
    if (read.warp == now.warp) {
      bool several = read.warp_barrier == now.warp_barrier && read.lane != now.lane;
      read = now;
      read.lane = several ? ALL_LANES : now.lane;
      return;
    }
  }
  // Two warps have read it already, so that any later write conflicts with one of them.
}

void use(const void *pointer, size_t size, bool writes) {
  uintptr_t address = uintptr_t(pointer), frame = uintptr_t(__builtin_frame_address(0));
  // A thread's own variables.
  if (address - frame < STACK_BYTES || frame - address < STACK_BYTES) {
    return;
  }
  unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  int16_t warp = thread / WARP, lane = of_warp ? ALL_LANES : thread % WARP;
  Access now{launch, block, block_barriers, warp_barriers[warp], warp, lane};
  bool shared = shared_start <= address && address < shared_end;
  for (uintptr_t at = address / GRAIN * GRAIN; at < address + size; at += GRAIN) {
    Cell &cell = page_of(at).cells[at % PAGE_BYTES / GRAIN];
    if (is_unordered(cell.write, now, shared)) {
      report(at, shared, cell.write, now);
    }
    if (!writes) {
      remember_read(cell, now);
      continue;
    }
    for (const Access &read : cell.reads) {
      if (is_unordered(read, now, shared)) {
        report(at, shared, read, now);
      }
    }
    cell.write = now;
  }
}

} // namespace races

#define DEFINE_ACCESSES(bytes)                                                                      \
  extern "C" void __tsan_read##bytes(void *at) { races::use(at, bytes, false); }                    \
  extern "C" void __tsan_write##bytes(void *at) { races::use(at, bytes, true); }                    \
  extern "C" void __tsan_unaligned_read##bytes(void *at) { races::use(at, bytes, false); }          \
  extern "C" void __tsan_unaligned_write##bytes(void *at) { races::use(at, bytes, true); }
DEFINE_ACCESSES(2)
DEFINE_ACCESSES(4)
DEFINE_ACCESSES(8)
DEFINE_ACCESSES(16)
#undef DEFINE_ACCESSES
extern "C" void __tsan_read_range(void *at, size_t bytes) { races::use(at, bytes, false); }
extern "C" void __tsan_write_range(void *at, size_t bytes) { races::use(at, bytes, true); }
// Single bytes may be neighbors in a pair, and are not looked at.
extern "C" void __tsan_read1(void *) {}
extern "C" void __tsan_write1(void *) {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit(void *) {}
