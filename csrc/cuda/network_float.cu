#include "cuda/network.cuh"

template int dsn::cuda::run_network_as<float>(const Plan&, const Schedule&, const NetworkCall&, Streams&);
