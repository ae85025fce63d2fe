#include "cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>

#include "check/error.h"

namespace longcat_ops::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};

#if defined(__x86_64__)
// NOTE: __builtin_cpu_supports does not know f16c in every compiler.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool machine_has(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
  return isa == Isa::kBaseline;
}

Isa choose_isa() {
  const char* wanted = std::getenv("LONGCAT_OPS_CPU_ISA");
  Isa best = Isa::kBaseline;
  std::string names;
  for (Isa isa : kAll) {
    if (!machine_has(isa)) continue;
    if (wanted && std::string(wanted) == isa_name(isa)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
    best = isa;
  }
  if (wanted && *wanted)
    fail_unsupported(text("LONGCAT_OPS_CPU_ISA is `", wanted, "`, expected one this machine can run: ", names, "."),
                     "unset it to use the best one");
  return best;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline: return "baseline";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
  }
  return "baseline";
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (Isa isa : kAll)
    if (machine_has(isa)) names.emplace_back(isa_name(isa));
  return names;
}

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace longcat_ops::cpu
