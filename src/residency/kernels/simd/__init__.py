"""The vector language of the CPU kernels, their compiler and their linker."""
