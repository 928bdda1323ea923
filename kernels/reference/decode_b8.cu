#include "reference/ops.cuh"

REFERENCES(8)
