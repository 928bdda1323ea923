// The kernel for one row.
#include "kernels.h"

DECODE(1)
