"""Reading compiled programs: a small one, written by hand, whose kernels and bytes are counted by hand."""

import pytest

from jaxvae.compiled.hlo import Kernel, Program, nbytes

TEXT = """HloModule jit_call, is_scheduled=true, entry_computation_layout={(f32[100,8]{1,0})->f32[8,8]{1,0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%a, %b)
}

%take (images: f32[100,8], at: s32[]) -> f32[4,8] {
  %images = f32[100,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %dynamic-slice.1 = f32[4,8]{1,0} dynamic-slice(%images, %at, %zero), dynamic_slice_sizes={4,8}
}

%store (losses: f32[50], loss: f32[], place: s32[]) -> f32[50] {
  %losses = f32[50]{0} parameter(0)
  %loss = f32[] parameter(1)
  %place = s32[] parameter(2)
  %bitcast.1 = f32[1]{0} bitcast(%loss)
  ROOT %dynamic-update-slice.1 = f32[50]{0} dynamic-update-slice(%losses, %bitcast.1, %place)
}

%inner_body (t: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %t = (s32[], f32[8,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t), index=0
  %w.1 = f32[8,8]{1,0} get-tuple-element(%t), index=1
  %one = s32[] constant(1)
  %add.2 = s32[]{:T(128)} add(%i.1, %one)
  %dot.2 = f32[8,8]{1,0} dot(%w.1, %w.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %tuple.2 = (s32[], f32[8,8]{1,0}) tuple(%add.2, %dot.2)
}

%inner_condition (t.1: (s32[], f32[8,8])) -> pred[] {
  %t.1 = (s32[], f32[8,8]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%t.1), index=0
  %three = s32[] constant(3)
  ROOT %compare.2 = pred[] compare(%i.2, %three), direction=LT
}

%body (p: (s32[], f32[100,8], f32[8,8], f32[50])) -> (s32[], f32[100,8], f32[8,8], f32[50]) {
  %p = (s32[], f32[100,8]{1,0}, f32[8,8]{1,0}, /*index=3*/f32[50]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[100,8]{1,0} get-tuple-element(%p), index=1
  %w = f32[8,8]{1,0} get-tuple-element(%p), index=2
  %said = f32[50]{0} get-tuple-element(%p), index=3
  %taken = f32[4,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%take
  %gemm = (f32[4,8]{1,0}, s8[16]{0}) custom-call(%taken, %w), custom_call_target="__cublas$gemm", metadata={op_name="a = b(c)"}
  %product = f32[4,8]{1,0} get-tuple-element(%gemm), index=0
  %start = f32[4,8]{1,0} all-reduce-start(%product), replica_groups={{0,1}}, to_apply=%sum
  %done = f32[4,8]{1,0} all-reduce-done(%start)
  %copy.1 = bf16[8,8]{1,0} convert(%w)
  %zero.1 = s32[] constant(0)
  %begin = (s32[], f32[8,8]{1,0}) tuple(%zero.1, %w)
  %while.2 = (s32[], f32[8,8]{1,0}) while(%begin), condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}
  %new = f32[8,8]{1,0} get-tuple-element(%while.2), index=1
  %loss.1 = f32[] reduce(%done, %zero.1), dimensions={0,1}, to_apply=%sum
  %kept = f32[50]{0} fusion(%said, %loss.1, %i), kind=kLoop, calls=%store, control-predecessors={%copy.1}
  %one.1 = s32[] constant(1)
  %next = s32[] add(%i, %one.1)
  ROOT %tuple.1 = (s32[], f32[100,8]{1,0}, f32[8,8]{1,0}, f32[50]{0}) tuple(%next, %x, %new, %kept)
}

%condition (p.1: (s32[], f32[100,8], f32[8,8], f32[50])) -> pred[] {
  %p.1 = (s32[], f32[100,8]{1,0}, f32[8,8]{1,0}, f32[50]{0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.1), index=0
  %fifty = s32[] constant(50)
  ROOT %compare.1 = pred[] compare(%i.3, %fifty), direction=LT
}

ENTRY %main (x.1: f32[100,8], w.2: f32[8,8]) -> f32[8,8] {
  %x.1 = f32[100,8]{1,0} parameter(0)
  %w.2 = f32[8,8]{1,0} parameter(1)
  %constant.5 = s32[] constant(0)
  %said.1 = f32[50]{0} broadcast(%constant.5), dimensions={}
  %tuple.3 = (s32[], f32[100,8]{1,0}, f32[8,8]{1,0}, f32[50]{0}) tuple(%constant.5, %x.1, %w.2, %said.1)
  %while.1 = (s32[], f32[100,8]{1,0}, f32[8,8]{1,0}, f32[50]{0}) while(%tuple.3), condition=%condition, body=%body
  ROOT %result = f32[8,8]{1,0} get-tuple-element(%while.1), index=2
}
"""  # noqa: E501
IMAGES, WEIGHTS, BATCH = 100 * 8 * 4, 8 * 8 * 4, 4 * 8 * 4  # Bytes.


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[32,784]{1,0}", 32 * 784 * 4),
        ("bf16[3]{0:T(128)(2,1)}", 6),
        ("(f32[2]{0}, s8[5]{0}, /*index=2*/pred[])", 8 + 5 + 1),
        ("f32[]", 4),
        ("f32[0,3]", 0),
        ("u32[2]{0}", 8),
        ("f8e4m3fn[16]{0}", 16),
        ("s4[10]{0:E(4)}", 5),
        ("c64[2]{0}", 16),
        ("((f32[2]{0}), token[])", 8),
        ("f32[<=4,2]{1,0}", 32),
    ],
)
def test_bytes_of_a_shape(shape: str, size: int) -> None:
    assert nbytes(shape) == size


def test_the_step_is_the_loop_with_most_kernels_of_its_own() -> None:
    program = Program(TEXT)
    assert sorted(program.loops) == ["body", "inner_body"]
    assert program.step() == "body"


def test_kernels_of_a_step_and_their_bytes() -> None:
    """A fusion reads the part that it takes, and writes the part that it updates. Numbers are no kernels."""
    kernels = {each.name: each for each in Program(TEXT).kernels("body")}
    assert kernels == {
        "taken": Kernel("taken", "fusion", 1, BATCH + 4, BATCH),
        "gemm": Kernel("gemm", "__cublas$gemm", 1, BATCH + WEIGHTS, BATCH + 16),
        "start": Kernel("start", "all-reduce-start", 1, BATCH, BATCH),
        "copy.1": Kernel("copy.1", "convert", 1, WEIGHTS, WEIGHTS // 2),
        "dot.2": Kernel("dot.2", "dot", 3, 2 * WEIGHTS, WEIGHTS),
        "loss.1": Kernel("loss.1", "reduce", 1, BATCH + 4, 4),
        "kept": Kernel("kept", "fusion", 1, 4 + 4, 4),
    }
    assert kernels["taken"].nbytes < IMAGES  # The whole of the images is not read.
    assert [each.name for each in kernels.values() if each.is_collective] == ["start"]


def test_the_longest_chain() -> None:
    """Take, multiply, reduce over devices, sum, store; the three turns of the inner loop run beside them."""
    assert Program(TEXT).chain("body") == 5
    longer = TEXT.replace('"known_trip_count":{"n":"3"}', '"known_trip_count":{"n":"7"}')
    assert Program(longer).chain("body") == 7
    # What must wait counts, whether or not it needs the value.
    alone = TEXT.replace("fusion(%said, %loss.1, %i)", "fusion(%said, %zero.1, %i)")
    assert Program(alone).chain("body") == 4
    after = alone.replace("control-predecessors={%copy.1}", "control-predecessors={%loss.1}")
    assert Program(after).chain("body") == 5


def test_names_without_signs_are_read_as_well() -> None:
    bare = Program(TEXT.replace("%", ""))
    assert list(bare.kernels("body")) == list(Program(TEXT).kernels("body"))
    assert bare.chain("body") == 5


def test_a_text_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="no computation"):
        Program("hello")
    with pytest.raises(ValueError, match="no loop"):
        Program(TEXT.partition("%body (p")[0].partition("%inner_body")[0]).step()
