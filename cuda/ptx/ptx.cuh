// All that kernels may use of the machine: one wrapper per PTX instruction of sm_90a or, with LC_EMULATE, the same
// names in the host emulator. Kernels include this file and device/*.cuh, nothing else.
#pragma once

#ifdef LC_EMULATE
#include "emu/ptx.h"
#else
#include "ptx/cluster.cuh"
#include "ptx/convert.cuh"
#include "ptx/matrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/multimem.cuh"
#include "ptx/thread.cuh"
#include "ptx/tma.cuh"
#include "ptx/types.cuh"
#include "ptx/wgmma.cuh"
#endif
