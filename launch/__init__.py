"""Ways to start a script on one machine or on many."""

# Set to 1 where JAX is to find out itself which processes there are; read by `transformer.training.distributed`, which
# is not imported here because JAX takes seconds.
DETECT = "TRANSFORMER_DISTRIBUTED"
