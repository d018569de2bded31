"""The kernels of the ``triton`` backend under Triton's interpreter, against the float64 reference."""
