#define DSN_VARIANT without_cluster_waits
#define DSN_NO_CLUSTER_WAIT
#include "kernels/bottleneck_kernels.h"
#include "kernels/plan_kernels.h"
#include "kernels/stage_kernels.h"
