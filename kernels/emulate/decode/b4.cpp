// The kernel for up to 4 rows.
#include "kernels.h"

DECODE(4)
