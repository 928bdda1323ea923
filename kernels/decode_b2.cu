#include "decode.cuh"

DECODE(2)
