#include "reference/ops.cuh"

REFERENCES(4)
