"""The parts of `benchmarks/on_gpu.py`; it says how to add one."""
