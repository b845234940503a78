#define DSN_VARIANT without_copy_waits
#define DSN_NO_COPY_WAIT
#include "kernels/bottleneck_kernels.h"
#include "kernels/plan_kernels.h"
#include "kernels/stage_kernels.h"
