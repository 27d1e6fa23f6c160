"""Counting: matrix products, collectives and their disguise, kernels."""

import pytest

from instructretro_jax.precompile import counts, hlo, operations, topology

TOP = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%pad_shard (zeros: f32[64,8], shard: f32[1,8], at: s32[]) -> f32[64,8] {
  %zeros = f32[64,8]{1,0} parameter(0)
  %shard = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %put = f32[64,8] dynamic-update-slice(%zeros, %shard, %at, %at), c={"estimated_cycles":"50"}
}

ENTRY %main (x: f32[64,8], shard: f32[1,8], at: s32[]) -> f32[64,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %shard = f32[1,8]{1,0} parameter(1)
  %at = s32[] parameter(2)
"""


def program(*lines):
  return hlo.parse(TOP + ''.join(f'  {line}\n' for line in lines) + '}\n')


def count(*lines):
  return counts.count(program(*lines))


def test_collectives_by_what_a_device_holds_afterwards():
  found = count(
    '%g = f32[64,8]{1,0} all-gather(%shard), dimensions={0}',
    '%gs = (f32[1,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%shard), dimensions={0}',
    '%gd = f32[64,8]{1,0} all-gather-done(%gs)',
    '%r = f32[64,8]{1,0} all-reduce(%x), to_apply=%add',
    '%rs = f32[1,8]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%add',
    '%two = (f32[64,8]{1,0}, f32[64,8]{1,0}) all-reduce(%x, %r), to_apply=%add',
  ).collectives
  whole = 64 * 8 * 4
  assert {k: (c.instructions, c.bytes) for k, c in found.items()} == {
    'all-gather': (2, 2 * whole),
    'all-reduce': (2, 3 * whole),
    'reduce-scatter': (1, whole),
  }


def test_a_gather_that_adds_shards_to_zeros_is_found_out():
  zeros = '%none = f32[64,8]{1,0} broadcast(%at), dimensions={}'
  padded = '%padded = f32[64,8]{1,0} fusion(%none, %shard, %at), kind=kLoop, calls=%pad_shard'
  honest = count('%r = f32[64,8]{1,0} all-reduce(%x), to_apply=%add')
  assert honest.gathers_as_reduces == 0
  found = count(zeros, padded, '%r = f32[64,8]{1,0} all-reduce(%padded), to_apply=%add')
  assert found.gathers_as_reduces == 64 * 8 * 4
  both = '%r = (f32[64,8]{1,0}, f32[64,8]{1,0}) all-reduce(%x, %padded), to_apply=%add'
  assert count(zeros, padded, both).gathers_as_reduces == 64 * 8 * 4


@pytest.mark.parametrize(
  'line, flops',
  [
    ('%y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={0}, rhs_contracting_dims={0}', 8192),
    ('%y = f32[64,64]{1,0} convolution(%x, %x), dim_labels=bf_oi->bf', 65536),
    # a batch of 64 products of [1, 1] x [1, 1], as the TPU compiler writes batches
    (
      '%y = f32[8,8,64]{2,1,0} convolution(%x3, %x3), '
      'window={size=64 stride=63 pad=0_0 lhs_dilate=64}, dim_labels=bf0_oi0->bf0',
      64 * 2 * 8 * 8 * 4,
    ),
    # a window of 3 over 64 with padding: the two ends miss one product each
    (
      '%y = f32[8,8,64]{2,1,0} convolution(%x3, %w3), window={size=3 pad=1_1}, '
      'dim_labels=bf0_oi0->bf0',
      (3 * 64 - 2) * 2 * 8 * 8 * 4,
    ),
  ],
)
def test_matrix_products(line, flops):
  inputs = (
    '%x3 = f32[8,4,64]{2,1,0} broadcast(%at), dimensions={}',
    '%w3 = f32[8,4,3]{2,1,0} broadcast(%at), dimensions={}',
  )
  assert count(*inputs, line).matmul_flops == flops


def test_attention_kernels_by_their_blocks():
  config = ', custom_call_target="tpu_custom_call", backend_config={"estimated_cycles":"7"}'
  array = 'bf16[2,4,512,64]{3,2,1,0}'
  inputs = (
    '%table = s8[1,4,4]{2,1,0} broadcast(%at), dimensions={}',
    f'%q = {array} broadcast(%at), dimensions={{}}',
    '%k = bf16[2,2,512,64]{3,2,1,0} broadcast(%at), dimensions={}',
  )
  call = 'custom-call(%table, %table, %q, %k, %k)'
  product = 2 * 2 * 4 * 512 * 512 * 64
  forward = count(*inputs, f'%splash_mha_fwd_residuals.3 = ({array}, f32[2,4,512]) {call}{config}')
  assert forward.kernels == {'splash_mha_fwd_residuals': 1}
  assert forward.kernel_flops == 2 * product * 10 / 16 and forward.matmul_flops == 0
  fused = f'%splash_mha_dkv_no_residuals.1 = ({array}, {array}, {array}) {call}{config}'
  assert count(*inputs, fused).kernel_flops == 5 * product * 10 / 16
  apart = fused.replace(f'({array}, {array}, {array})', f'({array}, {array})')
  assert count(*inputs, apart).kernel_flops == 4 * product * 10 / 16
  unmasked = apart.replace('%table, %table, ', '')
  assert count(*inputs, unmasked).kernel_flops == 4 * product
  said = ', backend_config={"custom_call_config":{"cost_estimate":{"flops":"99","bytes":"3"}}}'
  own = count(*inputs, f'%name.8 = {array} {call}, custom_call_target="tpu_custom_call"{said}')
  assert own.kernel_flops == 99 and own.unknown_kernels == ()
  other = count(*inputs, f'%my_kernel.2 = {array} {call}{config}')
  assert other.unknown_kernels == ('my_kernel',) and other.kernel_flops == 0


def test_operations_of_all_layers_by_time():
  name = 'jit(step)/{}while/body/closed_call/checkpoint/Retro/decoder_{}/layer_0/mlp/up/dot_general'
  line = (
    '%y{0} = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{0}}, rhs_contracting_dims={{0}}, '
    'metadata={{op_name="{1}"}}, backend_config={{"estimated_cycles":"{2}"}}'
  )
  backward = 'transpose(jvp(Retro.hidden_and_head))/'
  found = operations.slowest(
    program(
      line.format(0, name.format('jvp(Retro.hidden_and_head)/', '0_to_7'), 100),
      line.format(1, name.format(backward, '0_to_7'), 300),
      line.format(2, name.format(backward, '9_to_47'), 400),
      line.format(3, name.format(f'{backward}rematted_computation/', '0_to_7'), 50),
      '%p = f32[64,8]{1,0} copy(%x), backend_config={"estimated_cycles":"10"}',
    ),
    topology.CHIPS['v5p'],
  )
  end = 'decoder/layer/mlp/up/dot_general'
  assert [(o.name, round(o.seconds * 1.75e9), o.flops) for o in found] == [
    (f'backward {end}', 700, 2 * 8192),
    (f'forward {end}', 100, 8192),
    (f'recomputed {end}', 50, 8192),
    ('(p)', 10, 0),
  ]
  assert found[1].peak_share == pytest.approx(8192 / (100 / 1.75e9) / 459e12)
  assert operations.slowest(program(), topology.CHIPS['h100']) == []


def test_cycles_of_fusions_are_counted_once_and_unknown_ones_not():
  config = ', backend_config={"estimated_cycles":"%d"}'
  counted = count(
    '%p = f32[64,8]{1,0} fusion(%x, %shard, %at), kind=kLoop, calls=%pad_shard' + config % 100,
    '%c = f32[64,8]{1,0} copy(%p)' + config % 20,
    '%d = f32[64,8]{1,0} copy(%p)' + config % (1 << 62),
  )
  assert counted.cycles == 120
