import jax
import jax.numpy as jnp
import pytest

from transformer.training.parameters import Parameter, map_named


@pytest.mark.parametrize(
    ("path", "shape", "matrix", "matrix_shape"),
    [
        ("decoder/blocks/attention/query/kernel", (6, 8, 4, 2), True, (8, 8)),
        ("decoder/blocks/cross_attention/value/kernel", (6, 8, 2, 2), True, (8, 4)),
        ("encoder/blocks/attention/output/kernel", (6, 4, 2, 9), True, (8, 9)),
        ("encoder/blocks/attention/query/bias", (6, 4, 2), False, (4, 2)),
        ("encoder/blocks/attention/query_norm/scale", (6, 2), False, (2,)),
        ("encoder/blocks/mlp_norm/scale", (6, 8), False, (8,)),
        ("encoder/blocks/mlp/down/kernel", (6, 16, 8), True, (16, 8)),
        ("encoder/blocks/mlp/up/bias", (6, 16), False, (16,)),
        ("decoder/blocks/mlp/gate/kernel", (6, 4, 8, 16), True, (8, 16)),
        ("decoder/blocks/mlp/down/kernel", (6, 4, 16, 8), True, (16, 8)),
        ("decoder/blocks/mlp/down/bias", (6, 4, 8), False, (8,)),
        ("decoder/blocks/mlp/router/kernel", (6, 8, 4), True, (8, 4)),
        ("encoder/final_norm/scale", (8,), False, (8,)),
        ("encoder/relative/table", (32, 4), False, (32, 4)),
        ("decoder/positions/table", (32, 8), True, (32, 8)),
        ("embedding/table", (32, 8), True, (32, 8)),
        ("embedding/types", (2, 8), True, (2, 8)),
        ("readout/kernel", (8, 32), True, (8, 32)),
        ("readout/bias", (32,), False, (32,)),
    ],
)
def test_what_a_parameter_is(path, shape, matrix, matrix_shape):
    parameter = Parameter(path, shape)
    assert parameter.stacked == ("blocks" in path)
    own = 1 if "bias" in path else 2
    assert parameter.alike == (len(shape) - own if "mlp/" in path else int("blocks" in path))
    assert parameter.matrix == matrix
    assert parameter.matrix_shape == matrix_shape


def test_map_named_tells_paths_and_shapes_of_arrays_and_of_shapes():
    tree = {"a": [jnp.ones((2, 3))], "b": jax.ShapeDtypeStruct((4,), jnp.float32)}
    named = map_named(lambda parameter, _: (parameter.path, parameter.shape), tree)
    assert named == {"a": [("a/0", (2, 3))], "b": ("b", (4,))}
