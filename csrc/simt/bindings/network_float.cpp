#include "cuda/network_float.cu"
