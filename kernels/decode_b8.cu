#include "decode.cuh"

DECODE(8)
