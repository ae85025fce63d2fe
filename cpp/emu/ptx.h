// The emulated side of ptx/ptx.cuh.
#pragma once

#include "emu/ptx/cluster.h"
#include "emu/ptx/convert.h"
#include "emu/ptx/matrix.h"
#include "emu/ptx/mbarrier.h"
#include "emu/ptx/memory.h"
#include "emu/ptx/multimem.h"
#include "emu/ptx/thread.h"
#include "emu/ptx/tma.h"
#include "emu/ptx/types.h"
#include "emu/ptx/wgmma.h"
