"""From logits to tokens on a device; on the CPU, engine/sampler.py does the same in NumPy."""
