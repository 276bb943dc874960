// Everything that a kernel may include, to be compiled once in advance.
#pragma once

#include "cuda_runtime.h"

#include "mma.h"
