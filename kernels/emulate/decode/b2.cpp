// The kernel for up to 2 rows.
#include "kernels.h"

DECODE(2)
