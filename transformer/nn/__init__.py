"""Flax (Linen) modules: they declare parameters under explicit names and call `transformer.ops`. One concept a file."""
