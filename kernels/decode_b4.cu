#include "decode.cuh"

DECODE(4)
