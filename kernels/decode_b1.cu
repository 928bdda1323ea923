#include "decode.cuh"

DECODE(1)
