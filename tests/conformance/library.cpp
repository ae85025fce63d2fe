// The conformance cases over the host emulator.
#include "library.h"
