#include "cuda/network_half.cu"
