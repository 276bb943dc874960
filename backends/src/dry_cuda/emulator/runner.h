// What a kernel that was compiled for the CPU shares with the program that starts its threads.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

// The built-in variables of CUDA C++: the thread that is running.
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

// The shared memory of the block that is running.
extern "C" __attribute__((aligned(1024))) unsigned char dynamic_shared_mem[];

// Waits for the other threads of the block. All must wait at the same line of the kernel.
void wait_for_block(int line);

// Waits for the other threads of the warp. Only `__syncwarp` makes what each of them has written visible to the others; the exchange of
// values and matrix products do not.
void wait_for_warp(bool orders_memory);

// Says that the running thread reads and writes for its whole warp, or no longer does.
void act_for_warp(bool does);

// Says that the kernel is wrong, and why. The launch goes on.
void refuse(const char *reason);

// The values that the threads of the running thread's warp exchange: 32 of at most 16 bytes each.
void *warp_values();

// Returns the running thread's place in its warp.
int lane();

// Returns whether a thread of the running thread's warp exists and has not ended.
bool is_running(int lane);
