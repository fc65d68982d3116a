"""What instructions of compiled programs are said to be, for texts of known content."""

import pytest

from experiments import hlo

TEXT = """HloModule jit_step

FileNames
1 "/somewhere/optax/_src/transform.py"

FunctionNames
1 "update"

FileLocations
1 {file_name_id=1 function_name_id=1 line=41 end_line=41 column=3 end_column=9}

StackFrames
7 {file_location_id=1 parent_frame_id=1}


%fused (a: f32[2,2]) -> f32[2] {
  %a = f32[2,2]{1,0} parameter(0)
  %dot.9 = f32[2,2]{1,0} dot(%a, %a), metadata={op_name="jit(step)/jvp(Net)/Net.f/decoder/while/body/mlp/up/dot_general"}
  ROOT %add.9 = f32[2,2]{1,0} add(%dot.9, %a), metadata={op_name="jit(step)/jvp(Net)/decoder/add"}
}

%moved (b: f32[2,2]) -> f32[2,2] {
  %b = f32[2,2]{1,0} parameter(0)
  ROOT %transpose.1 = f32[2,2]{0,1} transpose(%b), dimensions={1,0}
}

%summed (c: f32[2,2]) -> f32[2] {
  %c = f32[2,2]{1,0} parameter(0)
  %exp.1 = f32[2,2]{1,0} exponential(%c)
  ROOT %sum.1 = f32[2]{0} reduce(%exp.1, %zero), dimensions={1}, to_apply=%region
}

%tanhs (d: f32[2,2]) -> f32[2,2] {
  %d = f32[2,2]{1,0} parameter(0)
  %tanh.1 = f32[2,2]{1,0} tanh(%d), metadata={op_name="jit(step)/decoder/tanh"}
  ROOT %negate.1 = f32[2,2]{1,0} negate(%tanh.1), metadata={op_name="jit(step)/decoder/neg"}
}

%turn (e: (s32[], f32[2,2])) -> (s32[], f32[2,2]) {
  %e = (s32[], f32[2,2]{1,0}) parameter(0)
  %copy.1 = (s32[], f32[2,2]{1,0}) copy(%e)
}

ENTRY %main (x: f32[2,2]) -> (f32[2]) {
  %x = f32[2,2]{1,0:T(8,128)} parameter(0)
  %fusion.1 = f32[2,2]{1,0:T(8,128)} fusion(%x), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/jvp(Net)/decoder/add"}
  %fusion.2 = f32[2,2]{0,1} fusion(%x), kind=kLoop, calls=%moved
  %fusion.3 = f32[2]{0} fusion(%x), kind=kInput, calls=%summed
  %mul.4 = f32[2,2]{1,0} multiply(%x, %x), metadata={op_name="jit(step)/mul" stack_frame_id=7}
  %loop = (s32[], f32[2,2]{1,0:T(8,128)}) while(%x), condition=%region, body=%turn, metadata={op_name="jit(step)/decoder/while"}
  %fusion.4 = f32[2,2]{1,0} fusion(%x), kind=kLoop, calls=%tanhs
  %gemm.5 = (f32[2,2]{1,0}, s8[9]{0}) custom-call(%x), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/attention/query/dot_general"}
  %kernel.6 = f32[2,2]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/attention/splash_mha_fwd"}
  %fmha.7 = f32[2,2]{1,0} custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax"
  %all-reduce.8 = f32[2,2]{1,0} all-reduce(%x), to_apply=%region, metadata={op_name="jit(step)/transpose(jvp(Net))/psum"}
  %dot.10 = f32[2,2]{1,0} dot(%x, /*index=1*/%x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %bitcast.11 = f32[4]{0} bitcast(%dot.10)
  %max.12 = f32[4]{0} maximum(%y, %bitcast.11), metadata={op_name="jit(step)/decoder/mlp/max"}
  ROOT %rows.9 = f32[2,2]{1,0} gather(%x, %x)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("name", "category", "origin"),
    [
        ("fusion.1", "matrix product", "forward decoder/mlp/up/dot_general"),
        ("fusion.2", "copy/transpose", "added by the compiler"),
        ("fusion.3", "reduction", "added by the compiler"),
        ("mul.4", "elementwise", "mul, _src/transform.py:41"),
        ("fusion.4", "elementwise", "decoder/neg"),
        ("loop", "control", "decoder/while"),
        ("copy.1", "copy/transpose", "added by the compiler in decoder/while"),
        ("gemm.5", "matrix product", "attention/query/dot_general"),
        ("kernel.6", "attention kernel", "attention/splash_mha_fwd"),
        ("fmha.7", "attention kernel", "added by the compiler"),
        ("all-reduce.8", "communication", "backward psum"),
        ("rows.9", "gather/scatter", "added by the compiler"),
        ("dot.10", "matrix product", "for decoder/mlp/max"),
        ("bitcast.11", "copy/transpose", "for decoder/mlp/max"),
        # What a program does not hold, as where it is gone, is known by its name alone.
        ("dynamic_slice.3", "copy/transpose", ""),
        ("while.3", "control", ""),
        ("MemcpyD2H", "host", ""),
        ("outfeed.1", "host", ""),
        ("sort.2", "sort", ""),
    ],
)
def test_instructions_have_a_category_and_an_origin(name, category, origin):
    program = hlo.Program(TEXT)
    assert (program.category(name), program.origin(name)) == (category, origin)
    assert program.control(name) == (category == "control")


def test_names_lose_how_jax_got_there():
    layer = "Net.f/decoder/decoder._scan/while/body/closed_call/Block/attention"
    path = f"jit(step)/transpose(jvp(Net))/{layer}/BTD,DK->BTK/dot"
    assert hlo.spoken(path) == "backward decoder/attention/BTD,DK->BTK/dot"
    assert hlo.spoken("jit(step)/vmap(jit(silu))/mul") == "mul"
