#include "reference/ops.cuh"

REFERENCES(2)
