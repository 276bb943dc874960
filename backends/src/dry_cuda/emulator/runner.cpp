// Runs the blocks of a launch one after another, and the threads of a block as fibers on one thread of the CPU: a fiber runs until it
// waits for others. The order of warps and of their threads is drawn anew after each barrier, so that a value that is read without a
// barrier after it was written is often read too early.
#include "races.h"
#include "runner.h"

#include <setjmp.h>
#include <string.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

uint3 threadIdx, blockIdx, blockDim, gridDim;

constexpr size_t SHARED_BYTES = 228 << 10;
constexpr unsigned char POISON = 0xff; // a NaN in every floating-point type
unsigned char dynamic_shared_mem[SHARED_BYTES + 1024];

namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t GUARD_BYTES = 4096;
constexpr int WARP = 32;
constexpr int UNORDERED = -1; // the line of a barrier that does not order memory

enum class State { Ready, AtBlockBarrier, AtWarpBarrier, Ended };

struct Fiber {
  jmp_buf context;
  ucontext_t start;
  bool started = false;
  State state = State::Ended;
  int line = 0;
  uint3 index;
};

struct alignas(16) Value {
  unsigned char bytes[16];
};

std::deque<Fiber> fibers; // their contexts must not move
std::vector<Value> values;
unsigned threads; // of a block
unsigned running; // the fiber that is running
jmp_buf scheduler;
void (*kernel)(void **);
void **kernel_arguments;
uint64_t random_state = 0x9e3779b97f4a7c15;
char message[256];

uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void yield(State state) {
  Fiber &fiber = fibers[running];
  fiber.state = state;
  if (!_setjmp(fiber.context)) {
    _longjmp(scheduler, 1);
  }
}

// A fiber is made once and runs one thread of each block.
void run_threads() {
  while (true) {
    kernel(kernel_arguments);
    yield(State::Ended);
  }
}

void resume(unsigned index) {
  Fiber &fiber = fibers[index];
  running = index;
  threadIdx = fiber.index;
  if (_setjmp(scheduler)) {
    return;
  }
  if (fiber.started) {
    _longjmp(fiber.context, 1);
  }
  fiber.started = true;
  setcontext(&fiber.start);
}

bool make_fibers() {
  size_t made = fibers.size();
  if (made >= threads) {
    return true;
  }
  fibers.resize(threads);
  values.resize((threads + WARP - 1) / WARP * WARP);
  for (size_t index = made; index < threads; index++) {
    void *stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED) {
      fibers.resize(index);
      return false;
    }
    // A kernel whose arrays do not fit ends the program instead of writing into another stack.
    mprotect(stack, GUARD_BYTES, PROT_NONE);
    Fiber &fiber = fibers[index];
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stack;
    fiber.start.uc_stack.ss_size = STACK_BYTES;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_threads, 0);
  }
  return true;
}

// Lets the threads of [first, end) go on if all that have not ended wait at a barrier. Returns whether one goes on.
bool release(unsigned first, unsigned end, State barrier) {
  int line = 0;
  bool found = false;
  for (unsigned index = first; index < end; index++) {
    const Fiber &fiber = fibers[index];
    if (fiber.state == State::Ended) {
      continue;
    }
    if (fiber.state != barrier || (found && fiber.line != line)) {
      return false;
    }
    found = true;
    line = fiber.line;
  }
  for (unsigned index = first; index < end; index++) {
    if (fibers[index].state == barrier) {
      fibers[index].state = State::Ready;
    }
  }
  if (found && barrier == State::AtBlockBarrier) {
    races::block_barriers++;
  } else if (found && line != UNORDERED) {
    races::warp_barriers[first / WARP]++;
  }
  return found;
}

// Returns 0 to count - 1 in an order that is drawn anew.
std::vector<unsigned> shuffled(unsigned count) {
  std::vector<unsigned> order(count);
  for (unsigned index = 0; index < count; index++) {
    unsigned other = next_random() % (index + 1);
    order[index] = order[other];
    order[other] = index;
  }
  return order;
}

// Runs the threads [first, end) of a warp until each waits for the block or has ended.
void run_warp(unsigned first, unsigned end) {
  do {
    for (unsigned offset : shuffled(end - first)) {
      if (fibers[first + offset].state == State::Ready) {
        resume(first + offset);
      }
    }
  } while (release(first, end, State::AtWarpBarrier));
}

// A warp runs as far as it can before the next one runs, so that a barrier of a warp does not stand for one of the block.
bool run_block_of_fibers() {
  for (unsigned index = 0; index < threads; index++) {
    fibers[index].state = State::Ready;
    fibers[index].index = {index % blockDim.x, index / blockDim.x % blockDim.y, index / (blockDim.x * blockDim.y)};
  }
  while (true) {
    for (unsigned warp : shuffled((threads + WARP - 1) / WARP)) {
      run_warp(warp * WARP, std::min((warp + 1) * WARP, threads));
    }
    bool ended = true;
    for (unsigned index = 0; index < threads; index++) {
      ended &= fibers[index].state == State::Ended;
    }
    if (ended) {
      return true;
    }
    if (!release(0, threads, State::AtBlockBarrier)) {
      snprintf(message, sizeof message, "threads of block (%u, %u, %u) wait at different barriers", blockIdx.x, blockIdx.y, blockIdx.z);
      // The fibers are in the midst of a kernel and cannot be used again; their stacks are lost.
      fibers.clear();
      return false;
    }
  }
}

bool run_block_of_calls() {
  for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++) {
    for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++) {
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) {
        kernel(kernel_arguments);
      }
    }
  }
  return true;
}

} // namespace

void wait_for_block(int line) {
  fibers[running].line = line;
  yield(State::AtBlockBarrier);
}

void wait_for_warp(bool orders_memory) {
  fibers[running].line = orders_memory ? 0 : UNORDERED;
  yield(State::AtWarpBarrier);
}

void act_for_warp(bool does) { races::of_warp = does; }

void refuse(const char *reason) {
  if (!message[0]) {
    snprintf(message, sizeof message, "%s", reason);
  }
}

void *warp_values() { return &values[running / WARP * WARP]; }

int lane() { return running % WARP; }

bool is_running(int lane) {
  unsigned index = running / WARP * WARP + lane;
  return index < threads && fibers[index].state != State::Ended;
}

// Runs a launch. `with_barriers`: whether its threads wait for one another. Returns nothing, or what is wrong with the kernel.
extern "C" const char *run(void (*call)(void **), void **arguments, uint3 grid, uint3 block, size_t shared_bytes, bool with_barriers) {
  kernel = call;
  kernel_arguments = arguments;
  gridDim = grid;
  blockDim = block;
  threads = block.x * block.y * block.z;
  if (shared_bytes > SHARED_BYTES) {
    return "the block asks for more shared memory than any card has";
  }
  if (with_barriers && !make_fibers()) {
    return "there is no memory for the stacks of the threads";
  }
  message[0] = races::message[0] = 0;
  races::launch++;
  races::shared_start = uintptr_t(dynamic_shared_mem);
  races::shared_end = races::shared_start + shared_bytes;
  for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) {
        for (size_t byte = 0; byte < shared_bytes + 64; byte++) {
          dynamic_shared_mem[byte] = POISON;
        }
        races::block_barriers++;
        if (!(with_barriers ? run_block_of_fibers() : run_block_of_calls())) {
          return message;
        }
        // Shared memory is not checked at each access, but what is written behind it is seen.
        for (size_t byte = shared_bytes; byte < shared_bytes + 64; byte++) {
          if (dynamic_shared_mem[byte] != POISON) {
            return "the block wrote behind its shared memory";
          }
        }
      }
    }
  }
  if (message[0]) {
    return message;
  }
  return races::message[0] ? races::message : nullptr;
}
