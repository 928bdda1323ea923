// The kernel for up to 8 rows.
#include "kernels.h"

DECODE(8)
