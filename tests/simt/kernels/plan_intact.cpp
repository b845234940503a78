#define DSN_VARIANT intact
#include "kernels/state_kernels.h"
