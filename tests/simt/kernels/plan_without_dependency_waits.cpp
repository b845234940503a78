#define DSN_VARIANT without_dependency_waits
#define DSN_NO_DEPENDENCY_WAIT
#include "kernels/bottleneck_kernels.h"
#include "kernels/plan_kernels.h"
#include "kernels/stage_kernels.h"
