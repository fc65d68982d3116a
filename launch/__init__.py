"""Ways to start a script on one machine or on many."""

# Set to 1 where JAX is to find out itself which processes there are; read by `transformer.training.distributed`, which
# is not imported here because JAX takes seconds.
DETECT = "TRANSFORMER_DISTRIBUTED"

# Exit codes of training that a new start would end with again: a mistake on the command line, numbers that are not
# finite, a checkpoint that cannot be written. No launcher starts anew after these.
FINAL = (2, 65, 74)

# Where it is set, training that a signal stopped ends with this exit code, once it has saved, in the place of 0.
STOPPED_CODE, STOPPED = "TRANSFORMER_STOPPED_CODE", 79

# Exit codes of processes that end because another one of their run did: training's own, and SIGABRT by JAX.
LOST = (69, 134)
