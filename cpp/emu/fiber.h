// Stackful coroutines on one operating-system thread: one for every emulated CUDA thread.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__)
#define LC_EMU_UCONTEXT  // much slower (it makes system calls), but portable
#endif
#ifdef LC_EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace longcat_ops::emu {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // entry must never return: it ends with leave(true).
  void prepare(void (*entry)());
  // From the scheduler: runs the fiber until it leaves.
  void enter();
  // From the fiber: back to the scheduler.
  void leave(bool for_ever = false);

  // The first thing that entry does.
  void arrived();

  bool started() const { return started_; }

 private:
  uint8_t* stack_ = nullptr;
  bool started_ = false;
#ifdef LC_EMU_UCONTEXT
  ucontext_t self_, scheduler_;
#else
  void* self_ = nullptr;  // stack pointers
  void* scheduler_ = nullptr;
#endif
  void* fake_stack_ = nullptr;  // of the address sanitizer
};

}  // namespace longcat_ops::emu
