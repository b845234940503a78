#include "cuda/network.cuh"

template int dsn::cuda::run_network_as<__nv_bfloat16>(const Plan&, const Schedule&, const NetworkCall&, Streams&);
