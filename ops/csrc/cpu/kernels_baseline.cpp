// The CPU kernels for any machine: vectors of 16 bytes.
#define MRRCNN_ISA baseline
#define MRRCNN_VECTOR_BYTES 16
#include "kernels.h"
