// Which instruction set the CPU kernels use. Results do not depend on it: all sets share one source, compiled without
// contraction into fused multiply-adds, and reductions have a fixed order or need none.
#pragma once

#include <string>
#include <vector>

namespace longcat_ops::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

const char* isa_name(Isa isa);
std::vector<std::string> available_isas();  // of this machine, worst first

// LONGCAT_OPS_CPU_ISA (baseline | avx2 | avx512), read once; the best available when unset. Throws CheckError for a
// name that does not exist or that this machine cannot run.
Isa active_isa();

}  // namespace longcat_ops::cpu
