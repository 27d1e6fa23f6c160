"""Reading compiled programs: loops, nesting, shapes."""

import jax
import jax.numpy as jnp
import pytest

from instructretro_jax.precompile import counts, hlo

# As the TPU compiler writes loops: no trip count, the limit in the condition or in the state.
LOOP = """HloModule loops, is_scheduled=true

%body (state: (s32[], f32[8,4], s32[])) -> (s32[], f32[8,4], s32[]) {
  %state = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %most = s32[]{:T(128)} get-tuple-element(%state), index=2
  %by = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%n, %by), metadata={op_name="add (of n)"}
  %w = f32[4,4]{1,0:T(8,128)} constant({...})
  %y = f32[8,4]{1,0:T(8,128)} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%next, %y, %most)
}

%condition (state.1: (s32[], f32[8,4], s32[])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  LIMIT
  ROOT %less = pred[]{:T(512)} compare(%n.1, %limit), direction=LT
}

ENTRY %main (x.1: f32[8,4], k: s32[]) -> f32[8,4] {
  %x.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %k = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %twelve = s32[]{:T(128)} constant(12)
  %first = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%zero, %x.1, THIRD)
  %loop = (s32[], f32[8,4], s32[]) while(%first), condition=%condition, body=%body
  ROOT %result = f32[8,4]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
IN_CONDITION = '%limit = s32[]{:T(128)} constant(12)'
IN_STATE = '%limit = s32[]{:T(128)} get-tuple-element(%state.1), index=2'


@pytest.mark.parametrize(
  'limit, third, step, trips',
  [
    (IN_CONDITION, '%twelve', 1, 12),
    (IN_STATE, '%twelve', 1, 12),
    (IN_CONDITION, '%twelve', 2, 6),  # windowed einsums pass two shards at a time
    (IN_STATE, '%k', 1, None),
  ],
)
def test_trips_of_a_loop(limit, third, step, trips):
  text = LOOP.replace('LIMIT', limit).replace('THIRD', third).replace('STEP', str(step))
  counted = counts.count(hlo.parse(text))
  assert counted.matmul_flops == (trips or 1) * 2 * 8 * 4 * 4
  assert counted.open_loops == (() if trips else ('loop',))


def test_a_scan_multiplies_as_its_layers_do():
  x, w = jnp.ones((16, 32)), jnp.ones((5, 32, 32))
  layer = lambda x, w: jnp.tanh(x @ w)

  def scanned(x, w):
    return jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0].sum()

  def unrolled(x, w):
    for n in range(5):
      x = layer(x, w[n])
    return x.sum()

  flops = [
    counts.count(hlo.parse(jax.jit(jax.grad(f, (0, 1))).lower(x, w).compile().as_text())).flops
    for f in (scanned, unrolled)
  ]
  assert flops == [3 * 5 * 2 * 16 * 32 * 32] * 2


def test_shapes_nest_and_layouts_have_brackets():
  line = (
    '  ROOT %a.1 = (f32[2,3]{1,0:T(8,128)(2,1)S(1)}, (bf16[7]{0:T(256)}, pred[])) custom-call('
    '%b, /*index=1*/%c.2), custom_call_target="x", metadata={op_name="f(g)"}'
  )
  module = hlo.parse(f'ENTRY %main (p: f32[]) -> f32[] {{\n{line}\n}}\n')
  instruction = module.computations['main']['a.1']
  assert instruction.is_root and instruction.opcode == 'custom-call'
  assert instruction.operands == ('b', 'c.2')
  assert [(a.dtype, a.sizes, a.num_bytes) for a in instruction.arrays] == [
    ('f32', (2, 3), 24),
    ('bf16', (7,), 14),
    ('pred', (), 1),
  ]
  assert instruction.attribute('custom_call_target') == '"x"'


def test_other_text_is_refused():
  with pytest.raises(ValueError, match='no HLO'):
    hlo.parse('module @jit_f {}')
