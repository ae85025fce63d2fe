// What the emulator reports, and where in the kernel.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace longcat_ops::emu {

using Location = std::source_location;

// kind is one word: race, proxy, swizzle, out-of-bounds, misaligned, uninitialised, divergent, deadlock, mbarrier,
// named-barrier, cluster, wgmma, wgmma-fence, descriptor, tensor-map, policy, scope, alias, peer, multicast, read-only,
// setmaxnreg, exit, launch.
// what() is "kind: text"; the text names the kernel's file:line, the operation, the device, the CTA and the thread.
struct Error : std::runtime_error {
  Error(std::string kind_, std::string text_)
      : std::runtime_error(kind_ + ": " + text_), kind(std::move(kind_)), text(std::move(text_)) {}

  std::string kind;
  std::string text;
};

// "file.cuh:123"
std::string describe(const Location& where);

// Throws Error; names the running thread when there is one.
[[noreturn]] void fail(const char* kind, const std::string& text, const Location& where);

}  // namespace longcat_ops::emu
