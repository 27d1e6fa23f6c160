"""A worker: a training step of lucidrains' RETRO (retro-pytorch 0.3.9), in its own environment."""

import functools
import json
from pathlib import Path
import sys

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import retro_pytorch.retro_pytorch as peer
from workers import serve


def main() -> None:
  s = json.loads(sys.argv[1])
  torch.set_num_threads(s['threads'])
  torch.manual_seed(0)
  # the package takes `heads` and does not hand it on: it would always use 8
  peer.Encoder = functools.partial(peer.Encoder, heads=s['heads'])
  peer.Decoder = functools.partial(peer.Decoder, heads=s['heads'])
  model = peer.RETRO(
    num_tokens=s['vocab_size'],
    max_seq_len=s['seq_len'],
    enc_dim=s['width'],
    enc_depth=s['encoder_layers'],
    dec_dim=s['width'],
    dec_depth=s['layers'],
    dec_cross_attn_layers=tuple(n + 1 for n in s['retro_layers']),  # it counts from 1
    heads=s['heads'],
    dim_head=s['width'] // s['heads'],
    chunk_size=s['chunk_len'],
  ).train()
  N, R = s['seq_len'] // s['chunk_len'], 2 * s['chunk_len']
  tokens = torch.randint(1, s['vocab_size'], (s['batch_size'], s['seq_len'] + 1))
  retrieved = torch.randint(1, s['vocab_size'], (s['batch_size'], N, s['neighbours'], R))
  optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

  def step() -> float:
    loss = model(tokens, retrieved=retrieved, return_loss=True)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()

  parameters = sum(x.numel() for x in model.parameters())
  serve(step, {'parameters': parameters, 'torch': torch.__version__})


if __name__ == '__main__':
  main()
