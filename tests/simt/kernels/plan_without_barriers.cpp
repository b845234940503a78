#define DSN_VARIANT without_barriers
#define DSN_NO_BARRIER
#include "kernels/state_kernels.h"
