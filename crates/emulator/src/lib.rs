//! CUDA kernels executed on the CPU, thread by thread, for tests.
