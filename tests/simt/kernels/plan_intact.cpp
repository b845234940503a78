#define DSN_VARIANT intact
#include "kernels/bottleneck_kernels.h"
#include "kernels/plan_kernels.h"
#include "kernels/stage_kernels.h"
#include "kernels/state_kernels.h"
