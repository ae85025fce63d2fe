// The conformance cases for a GPU.
#include "library.h"
