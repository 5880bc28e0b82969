"""C++ for what torch is slow at on CPUs: layers, losses, Adam's step; knows nothing of networks.

`library.py` compiles and loads the C++ files beside it once per machine; each other module wraps
one idea as functions of tensors. Where there is no compiler nothing here is used.
"""
