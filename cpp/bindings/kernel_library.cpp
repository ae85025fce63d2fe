#include "bindings/kernel_library.h"

#include <dlfcn.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace longcat_ops::bindings {
namespace {

// One per device. Tables are never freed, because a call may still use one that was replaced.
std::atomic<const KernelLibrary*> cuda_kernels{nullptr}, emulated_kernels{nullptr};

thread_local bool checked = true;

template <class Function>
void find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
}

// Path of a file `name` beside this library.
std::string beside(const char* name) {
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&beside), &info);
  const std::string own = info.dli_fname ? info.dli_fname : "";
  return own.substr(0, own.rfind('/') + 1) + name;
}

const KernelLibrary* load(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw std::runtime_error(std::string("the kernels cannot be loaded: ") + dlerror());
  auto* library = new KernelLibrary;
#define LC_FIND(name) find(handle, #name, library->name);
  LC_KERNEL_FUNCTIONS(LC_FIND)
#undef LC_FIND
  return library;
}

}  // namespace

const KernelLibrary& kernel_library(DeviceKind device) {
  const bool cpu = device == DeviceKind::kCpu;
  std::atomic<const KernelLibrary*>& known = cpu ? emulated_kernels : cuda_kernels;
  const KernelLibrary* library = known.load(std::memory_order_acquire);
  if (library == nullptr) {
    library = load(beside(cpu ? "liblongcat_emu.so" : "liblongcat_kernels.so"));
    known.store(library, std::memory_order_release);
  }
  return *library;
}

bool arguments_are_checked() { return checked; }

}  // namespace longcat_ops::bindings

// 0: this thread's calls skip the checks, as the C functions do. For tests of arguments that the ops refuse.
extern "C" LC_API void lc_check_arguments(int on) { longcat_ops::bindings::checked = on != 0; }

// From now on calls of torch.ops.longcat_kernels, and of torch.ops.longcat_ops on a GPU, reach the library at `path`,
// or with null the one beside this file. on_gpu: replaces the library for CUDA tensors. Returns null, or what is wrong.
// For tools and tests: functions that the library lacks must not be called.
extern "C" LC_API const char* lc_use_kernels(int on_gpu, const char* path) {
  using namespace longcat_ops::bindings;
  static thread_local std::string problem;
  try {
    (on_gpu != 0 ? cuda_kernels : emulated_kernels).store(path ? load(path) : nullptr, std::memory_order_release);
    return nullptr;
  } catch (const std::exception& error) {
    problem = error.what();
    return problem.c_str();
  }
}
