"""Compute with C++ kernels what torch is slow at on CPUs; nothing here knows a network.

The kernels are convolutions, dense layers, losses, Adam's step and the stepping of environments.
Their sources are in `src/`, by kind of kernel. `library.py` compiles and loads them once per
machine; each other module wraps one kind of kernel as functions of tensors. Without a compiler
nothing here is used.
"""
