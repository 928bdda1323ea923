#include "reference/ops.cuh"

REFERENCES(1)
