#define DSN_VARIANT without_barriers
#define DSN_NO_BARRIER
#include "kernels/bottleneck_kernels.h"
#include "kernels/plan_kernels.h"
#include "kernels/stage_kernels.h"
#include "kernels/state_kernels.h"
