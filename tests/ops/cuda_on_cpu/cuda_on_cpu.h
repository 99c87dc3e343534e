// Enough of CUDA to run a kernel's very source on the CPU: blocks one after another, the threads of a block
// as fibers that give way to each other only where they have to wait.
//
// Whatever the kernel leaves out between two accesses to shared memory shows: `Schedule` says who runs first
// and how far, and results may not depend on it. Nor may they on what shared memory held before a block.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include <link.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static thread_local  // there is one thread; so they lie side by side, and nothing else does
#define __grid_constant__
#define __launch_bounds__(...)

namespace cuda_on_cpu {

struct Dimensions {
  unsigned x = 1, y = 1, z = 1;
};

// Whether threads take their turns from the last to the first, whether a warp goes on alone until it has to wait
// for the others, and whether shared memory is filled with NaN before every block.
struct Schedule {
  bool downwards, warps_run_ahead, poison;
};

constexpr int kLanes = 32, kStackBytes = 1 << 17;

// Threads that wait for each other: a block's or a warp's. What they hand over is kept for two meetings, so
// that a fast thread may arrive at the next one while a slow thread still reads.
struct Meeting {
  int members, arrived = 0;
  unsigned round = 0;
  std::vector<uint64_t> values[2];

  explicit Meeting(int members) : members(members) {
    for (auto& one : values) one.resize(members);
  }
};

struct Fiber {
  ucontext_t start;
  jmp_buf state;
  bool started = false, done = false;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting all;
  ucontext_t caller_start;
  jmp_buf caller;
  int current = 0;
  int64_t moves = 0;  // arrivals and ends
  void (*body)(void*) = nullptr;
  void* argument = nullptr;

  explicit Block(int threads) : fibers(threads), warps(threads / kLanes, Meeting(kLanes)), all(threads) {}
};

inline Block* block = nullptr;

inline void give_way() {
  Fiber& fiber = block->fibers[block->current];
  if (_setjmp(fiber.state) == 0) _longjmp(block->caller, 1);
}

// Hands `value` over as `member` and waits for all; returns what everybody handed over.
inline const std::vector<uint64_t>& meet(Meeting& meeting, int member, uint64_t value) {
  const unsigned round = meeting.round;
  meeting.values[round % 2][member] = value;
  ++block->moves;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.round;
  } else {
    while (meeting.round == round) give_way();
  }
  return meeting.values[round % 2];
}

}  // namespace cuda_on_cpu

inline cuda_on_cpu::Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

inline const std::vector<uint64_t>& meet_warp(unsigned lanes, uint64_t value) {
  if (lanes != 0xffffffffu) std::abort();  // kernels here always mean all lanes
  return meet(block->warps[threadIdx.x / kLanes], threadIdx.x % kLanes, value);
}

inline void run_fiber() {
  block->body(block->argument);
  block->fibers[block->current].done = true;
  ++block->moves;
  _longjmp(block->caller, 1);
}

inline void resume(int thread) {
  block->current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  Fiber& fiber = block->fibers[thread];
  if (_setjmp(block->caller) != 0) return;
  if (fiber.started) _longjmp(fiber.state, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber.start, run_fiber, 0);
  swapcontext(&block->caller_start, &fiber.start);
}

// Fills all shared memory of this library with NaN.
inline void poison_shared_memory() {
  const auto poison = [](dl_phdr_info* library, size_t, void*) {
    const auto here = reinterpret_cast<ElfW(Addr)>(&block);
    const ElfW(Phdr)* shared = nullptr;
    bool ours = false;
    for (int n = 0; n < library->dlpi_phnum; ++n) {
      const ElfW(Phdr)& one = library->dlpi_phdr[n];
      const ElfW(Addr) begin = library->dlpi_addr + one.p_vaddr;
      if (one.p_type == PT_TLS) shared = &one;
      ours = ours || (one.p_type == PT_LOAD && begin <= here && here < begin + one.p_memsz);
    }
    if (ours && shared && library->dlpi_tls_data) std::memset(library->dlpi_tls_data, 0xff, shared->p_memsz);
    return static_cast<int>(ours);
  };
  dl_iterate_phdr(poison, nullptr);
}

// Gives every thread of a warp a turn; returns how many are not at their end.
inline int run_warp(int warp, bool downwards) {
  int left = 0;
  for (int n = 0; n < kLanes; ++n) {
    const int thread = warp * kLanes + (downwards ? kLanes - 1 - n : n);
    if (!block->fibers[thread].done) resume(thread);
    left += !block->fibers[thread].done;
  }
  return left;
}

// Runs every thread of a block to its end; false if all that are left wait for somebody who will not come.
inline bool run_block(const Schedule& schedule) {
  const int warps = static_cast<int>(block->warps.size());
  if (schedule.poison) poison_shared_memory();
  for (Fiber& fiber : block->fibers) fiber.started = fiber.done = false;
  for (int left = warps; left > 0;) {
    const int64_t moves = block->moves;
    left = 0;
    for (int n = 0; n < warps; ++n) {
      const int warp = schedule.downwards ? warps - 1 - n : n;
      int64_t before = block->moves;
      int waiting = run_warp(warp, schedule.downwards);
      while (schedule.warps_run_ahead && block->moves != before) {
        before = block->moves;
        waiting = run_warp(warp, schedule.downwards);
      }
      left += waiting;
    }
    if (left > 0 && block->moves == moves) return false;
  }
  return true;
}

// kernel<<<grid, threads>>>(), where `kernel` takes no arguments; false if it hangs.
template <class Kernel>
bool launch(Dimensions grid, int threads, const Schedule& schedule, Kernel kernel) {
  Block fibers(threads);
  fibers.body = [](void* argument) { (*static_cast<Kernel*>(argument))(); };
  fibers.argument = &kernel;
  block = &fibers;
  gridDim = grid;
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  bool ended = true;
  for (unsigned n = 0; ended && n < grid.x * grid.y; ++n) {
    blockIdx = {n % grid.x, n / grid.x, 0};
    ended = run_block(schedule);
  }
  block = nullptr;
  return ended;
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::meet(cuda_on_cpu::block->all, threadIdx.x, 0); }

inline int __syncthreads_or(int predicate) {
  for (const uint64_t one : cuda_on_cpu::meet(cuda_on_cpu::block->all, threadIdx.x, predicate != 0)) {
    if (one) return 1;
  }
  return 0;
}

inline void __syncwarp(unsigned lanes = 0xffffffffu) { cuda_on_cpu::meet_warp(lanes, 0); }

inline unsigned __ballot_sync(unsigned lanes, int predicate) {
  const auto& values = cuda_on_cpu::meet_warp(lanes, predicate != 0);
  unsigned bits = 0;
  for (int lane = 0; lane < cuda_on_cpu::kLanes; ++lane) bits |= static_cast<unsigned>(values[lane]) << lane;
  return bits;
}

inline int __any_sync(unsigned lanes, int predicate) { return __ballot_sync(lanes, predicate) != 0; }

template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int distance) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const int lane = threadIdx.x % cuda_on_cpu::kLanes;
  const uint64_t other = cuda_on_cpu::meet_warp(lanes, bits)[lane ^ distance];
  std::memcpy(&value, &other, sizeof(T));
  return value;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
