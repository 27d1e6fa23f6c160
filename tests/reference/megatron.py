"""Megatron's Retro in numpy, in Megatron's own names, row by row where order matters."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])
ACTIVATIONS = {
  'gelu': lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
  'squared_relu': lambda x: np.maximum(x, 0) ** 2,
  'swiglu': lambda x: (
    np.split(x, 2, -1)[0] / (1 + np.exp(-np.split(x, 2, -1)[0])) * np.split(x, 2, -1)[1]
  ),
}


class Megatron:
  """One sequence at a time; masks say what is forbidden, and a forbidden score is -10000."""

  def __init__(self, state, *, heads, activation, rotary_width, chunk_len, retro_layers):
    self.state, self.heads, self.chunk_len = state, heads, chunk_len
    self.activation, self.rotary_width = ACTIVATIONS[activation], rotary_width
    self.retro_layers = retro_layers

  def linear(self, name, x):
    return x @ self.state[f'{name}.weight'].T + self.state.get(f'{name}.bias', 0)

  def norm(self, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * self.state[f'{name}.weight'] + self.state[f'{name}.bias']

  def rotate(self, head):
    out, half = head.copy(), self.rotary_width // 2
    for position in range(len(head)):
      for i in range(half):
        angle = position * 10_000 ** (-i / half)
        a, b = head[position, i], head[position, i + half]
        out[position, i] = a * math.cos(angle) - b * math.sin(angle)
        out[position, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out

  def attend(self, q, k, v, forbidden):
    """q [T, D], k and v [U, D], each already split by head as a list; returns [T, D]."""
    outs = []
    for qh, kh, vh in zip(q, k, v):
      scores = qh @ kh.T / math.sqrt(qh.shape[1])
      if forbidden is not None:
        scores = np.where(forbidden, -10_000.0, scores)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      outs.append(weights / weights.sum(-1, keepdims=True) @ vh)
    return np.concatenate(outs, -1)

  def rows(self, x, num):
    """Splits fused rows: for each head, its q, k, v (or k, v) one after the other."""
    pieces = np.split(x, self.heads * num, -1)
    return [[pieces[h * num + i] for h in range(self.heads)] for i in range(num)]

  def self_attention(self, name, x, forbidden, rotary):
    q, k, v = self.rows(self.linear(f'{name}.linear_qkv', x), 3)
    if rotary:
      q, k = [self.rotate(h) for h in q], [self.rotate(h) for h in k]
    return self.linear(f'{name}.linear_proj', self.attend(q, k, v, forbidden))

  def cross_attention(self, name, x, memory):
    (q,) = self.rows(self.linear(f'{name}.attn.linear_q', x), 1)
    k, v = self.rows(self.linear(f'{name}.attn.linear_kv', memory), 2)
    return self.linear(f'{name}.attn.linear_proj', self.attend(q, k, v, None))

  def mlp(self, name, x):
    return self.linear(f'{name}.linear_fc2', self.activation(self.linear(f'{name}.linear_fc1', x)))

  def embed(self, tokens, positions):
    x = self.state['embedding.word_embeddings.weight'][tokens]
    table = self.state.get('embedding.position_embeddings.weight')
    return x if table is None else x + table[positions]

  def encode(self, name, tokens, chunk, forbidden, num_layers, residual):
    x = self.embed(tokens, np.arange(len(tokens)))
    for n in range(num_layers):
      at = f'{name}.layers.{n}'
      h = self.norm(f'{at}.input_layernorm', x)
      x = x + self.self_attention(f'{at}.self_attention', h, forbidden, rotary=False)
      if n == 0:
        h = self.norm(f'{at}.pre_cross_attn_layernorm', x)
        x = (h if residual == 'normed' else x) + self.cross_attention(
          f'{at}.cross_attention', h, chunk
        )
      norm = f'{at}.pre_mlp_layernorm' + ('.norm' if n == 0 else '')
      x = x + self.mlp(f'{at}.mlp', self.norm(norm, x))
    return x

  def logits(
    self, tokens, positions, forbidden, neighbours, encoder_forbidden, *, num_layers, residual
  ):
    """[L, V]; neighbours [N, K, R] or None, encoder_forbidden [N, K, R, R] or None."""
    length, m = len(tokens), self.chunk_len
    first = (length - 1) % m + 1
    rotary = 'embedding.position_embeddings.weight' not in self.state
    x, encoded = self.embed(tokens, positions), None
    for n in range(num_layers):
      at = f'decoder.layers.{n}'
      h = self.norm(f'{at}.input_layernorm', x)
      x = x + self.self_attention(f'{at}.self_attention', h, forbidden, rotary)
      if neighbours is not None and n in self.retro_layers:
        h = self.norm(f'{at}.pre_cross_attn_layernorm', x)
        if encoded is None:
          encoded = []
          for u in range(len(neighbours)):
            start, end = (0, first) if u == 0 else (first + (u - 1) * m, first + u * m)
            chunk = np.zeros((m, x.shape[1]))
            chunk[: end - start] = h[start:end]
            texts = [
              self.encode(
                f'{at}.cross_attention.encoder',
                neighbours[u, k],
                chunk,
                None if encoder_forbidden is None else encoder_forbidden[u, k],
                2,
                residual,
              )
              for k in range(neighbours.shape[1])
            ]
            encoded.append(np.concatenate(texts))
        read = np.zeros_like(x)
        for i in range(first - 1, length):
          u = (i - (first - 1)) // m
          read[i] = self.cross_attention(f'{at}.cross_attention', h[i : i + 1], encoded[u])[0]
        x = x + read
      x = x + self.mlp(f'{at}.mlp', self.norm(f'{at}.pre_mlp_layernorm', x))
    if 'decoder.final_layernorm.weight' in self.state:
      x = self.norm('decoder.final_layernorm', x)
    table = self.state.get('output_layer.weight', self.state['embedding.word_embeddings.weight'])
    return x @ table.T
