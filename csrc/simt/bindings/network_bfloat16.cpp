#include "cuda/network_bfloat16.cu"
