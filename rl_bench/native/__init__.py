"""Layers in C++ for what torch is slow at on CPUs; knows nothing of networks.

`library.py` compiles and loads the C++ files beside it once per machine; each other module wraps
one idea as a differentiable function of tensors. Where there is no compiler nothing here is used.
"""
