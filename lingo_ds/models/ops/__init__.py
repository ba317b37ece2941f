"""Numerical operations of the package's own on a CPU, with their C++ kernels."""
