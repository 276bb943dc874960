#include "cuda_half.h"
