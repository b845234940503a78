#define DSN_VARIANT without_own_barriers
#define DSN_NO_OWN_BARRIER
#include "kernels/state_kernels.h"
