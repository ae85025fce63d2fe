#include "emu/fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace longcat_ops::emu {
namespace {

// Only touched pages cost memory. The lowest page is a guard: an overflow faults instead of corrupting a neighbour.
constexpr size_t kStackBytes = 512 * 1024;
constexpr size_t kGuardBytes = 16 * 1024;

struct StackPool {
  std::vector<uint8_t*> free;

  ~StackPool() {
    for (uint8_t* stack : free) munmap(stack, kStackBytes);
  }
  uint8_t* take() {
    if (!free.empty()) {
      uint8_t* stack = free.back();
      free.pop_back();
      return stack;
    }
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      std::perror("emulator: no memory for the stack of a thread");
      std::abort();
    }
    mprotect(memory, kGuardBytes, PROT_NONE);
    return static_cast<uint8_t*>(memory);
  }
};
thread_local StackPool stack_pool;

#ifdef __SANITIZE_ADDRESS__
thread_local const void* scheduler_stack = nullptr;  // learnt when a fiber is entered
thread_local size_t scheduler_stack_bytes = 0;
#endif

}  // namespace

#ifndef LC_EMU_UCONTEXT
// Saves the callee-saved registers and the stack pointer, then continues where `load` was saved.
extern "C" void longcat_emu_switch(void** save, void* load);

#ifdef __x86_64__
asm(R"(
.text
.hidden longcat_emu_switch
.globl longcat_emu_switch
.type longcat_emu_switch, @function
longcat_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size longcat_emu_switch, .-longcat_emu_switch
)");
constexpr size_t kSavedWords = 6, kReturnWord = 6;
#else
asm(R"(
.text
.hidden longcat_emu_switch
.globl longcat_emu_switch
.type longcat_emu_switch, %function
longcat_emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size longcat_emu_switch, .-longcat_emu_switch
)");
constexpr size_t kSavedWords = 20, kReturnWord = 11;  // x30 is the twelfth word
#endif
#endif  // LC_EMU_UCONTEXT

Fiber::~Fiber() {
  if (stack_ != nullptr) stack_pool.free.push_back(stack_);
}

void Fiber::prepare(void (*entry)()) {
  if (stack_ == nullptr) stack_ = stack_pool.take();
#ifdef LC_EMU_UCONTEXT
  getcontext(&self_);
  self_.uc_stack.ss_sp = stack_ + kGuardBytes;
  self_.uc_stack.ss_size = kStackBytes - kGuardBytes;
  self_.uc_link = nullptr;
  makecontext(&self_, entry, 0);
#else
  // Stacks that began at equal offsets of their pages would share a few sets of the caches: shift them by 64 amounts.
  const size_t shift = reinterpret_cast<uintptr_t>(stack_) / kStackBytes % 64 * (1024 + 64);
  // The frame that the first switch pops. NOTE: on entry to a function the stack pointer is 8 below a multiple of 16 on
  // x86-64 (a return address has been pushed) and a multiple of 16 on aarch64.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 128 - shift);
  void** frame = top - kSavedWords;
  std::memset(frame, 0, (kSavedWords + 2) * sizeof(void*));
  frame[kReturnWord] = reinterpret_cast<void*>(entry);
  self_ = frame;
#endif
}

void Fiber::enter() {
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_ + kGuardBytes, kStackBytes - kGuardBytes);
#endif
  started_ = true;
#ifdef LC_EMU_UCONTEXT
  swapcontext(&scheduler_, &self_);
#else
  longcat_emu_switch(&scheduler_, self_);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Fiber::leave([[maybe_unused]] bool for_ever) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake_stack_, scheduler_stack, scheduler_stack_bytes);
#endif
#ifdef LC_EMU_UCONTEXT
  swapcontext(&self_, &scheduler_);
#else
  longcat_emu_switch(&self_, scheduler_);
#endif
  arrived();
}

void Fiber::arrived() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

}  // namespace longcat_ops::emu
