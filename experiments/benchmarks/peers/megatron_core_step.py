"""A worker: a training step of NVIDIA's RetroModel (megatron-core 0.15.3), in its own environment.

Three substitutions let it run without a GPU; none changes the mathematics.
"""

import contextlib
import json
import os
from pathlib import Path
import sys

os.environ |= {'NVTE_FLASH_ATTN': '0', 'NVTE_FUSED_ATTN': '0', 'TORCHDYNAMO_DISABLE': '1'}

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from megatron.core import parallel_state
from megatron.core.models.retro import RetroConfig, RetroModel, get_retro_decoder_block_spec
from megatron.core.models.retro import config as retro_config
from megatron.core.tensor_parallel import random as tensor_random
from workers import serve


class NoTracker:
  """Stands for the CUDA random number tracker, which needs a GPU even without dropout."""

  def is_initialized(self):
    return True

  def fork(self, *args, **kwargs):
    return contextlib.nullcontext()


def stand_in_for_a_gpu() -> None:
  torch.cuda.current_device = lambda: 'cpu'
  retro_config.is_te_min_version = lambda *args, **kwargs: False  # fails without TransformerEngine
  tracker = NoTracker()
  for module in list(sys.modules.values()):
    if getattr(module, '__name__', '').startswith('megatron.core') and hasattr(
      module, 'get_cuda_rng_tracker'
    ):
      module.get_cuda_rng_tracker = lambda *args, **kwargs: tracker
  tensor_random._CUDA_RNG_STATE_TRACKER = tracker


def main() -> None:
  s = json.loads(sys.argv[1])
  torch.set_num_threads(s['threads'])
  torch.manual_seed(0)
  os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29533'}
  torch.distributed.init_process_group('gloo', rank=0, world_size=1)
  parallel_state.initialize_model_parallel()
  stand_in_for_a_gpu()
  B, L, C, K = s['batch_size'], s['seq_len'], s['chunk_len'], s['neighbours']
  config = RetroConfig(
    num_layers=s['layers'],
    hidden_size=s['width'],
    ffn_hidden_size=4 * s['width'],
    num_attention_heads=s['heads'],
    hidden_dropout=0.0,
    attention_dropout=0.0,
    add_bias_linear=False,
    use_cpu_initialization=True,
    pipeline_dtype=torch.float32,
    bias_dropout_fusion=False,
    retro_encoder_num_layers=s['encoder_layers'],
    retro_encoder_hidden_dropout=0.0,
    retro_encoder_attention_dropout=0.0,
    retro_num_neighbors=K,
    retro_num_retrieved_chunks=2,
    retro_retrieved_length=2 * C,
    retro_chunk_length=C,
    retro_split_preprocessing='',
  )
  model = RetroModel(
    config=config,
    transformer_layer_spec=get_retro_decoder_block_spec(config, use_transformer_engine=False),
    vocab_size=s['vocab_size'],
    max_sequence_length=L,
    position_embedding_type='rope',
    share_embeddings_and_output_weights=False,
    parallel_output=True,
  ).train()
  tokens = torch.randint(1, s['vocab_size'], (B, L + 1))
  context = torch.randint(1, s['vocab_size'], (B * (L // C) * K, 2 * C))
  positions = lambda x: torch.arange(x.shape[1]).expand_as(x)
  inputs = dict(
    input_ids=tokens[:, :-1],
    position_ids=positions(tokens[:, :-1]),
    attention_mask=torch.ones(1, 1, L, L, dtype=torch.bool).triu(1),
    context_input_ids=context,
    context_position_ids=positions(context),
    context_mask=None,
    labels=tokens[:, 1:],
  )
  optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

  def step() -> float:
    loss = model(**inputs).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

  parameters = sum(x.numel() for x in model.parameters())
  serve(step, {'parameters': parameters, 'torch': torch.__version__})


if __name__ == '__main__':
  main()
