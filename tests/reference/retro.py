"""Retro written slowly in numpy, position by position, from the equations."""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def norm(x, p, eps=1e-5):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * p['scale']


def gelu(x):
  return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def rotate(x, position, base=10_000.0):
  half = len(x) // 2
  out = x.copy()
  for i in range(half):
    angle = position * base ** (-i / half)
    out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
    out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
  return out


def linear(x, p, h):
  return x @ p['kernel'][:, h] + (p['bias'][h] if 'bias' in p else 0)


def normed_heads(x, p):
  """[T, H, A], each head by itself or all as one vector: as many as there are scales."""
  if p['scale'].size == x.shape[-1]:
    return norm(x, p)
  return norm(x.reshape(len(x), -1), p).reshape(x.shape)


def attention(
  queries, memory, p, allowed, q_position=None, k_position=None, bias=None, interpolation=1.0
):
  """queries [T, D], memory [U, D], allowed(t, u); returns [T, D]."""
  if interpolation != 1:
    q_position, k_position = (np.array(x) / interpolation for x in (q_position, k_position))
  heads, width = p['query']['kernel'].shape[1:]
  readers = heads // p['key']['kernel'].shape[1]  # heads that share a key and value head
  out = np.zeros_like(queries)
  all_q = np.stack([linear(queries, p['query'], h) for h in range(heads)], 1)
  all_k = np.stack([linear(memory, p['key'], g) for g in range(heads // readers)], 1)
  if 'query_norm' in p:
    all_q, all_k = normed_heads(all_q, p['query_norm']), normed_heads(all_k, p['key_norm'])
  for h in range(heads):
    q, k = all_q[:, h], all_k[:, h // readers]
    v = linear(memory, p['value'], h // readers)
    for t in range(len(q)):
      keys = [u for u in range(len(k)) if allowed(t, u)]
      if not keys:
        continue
      qt = q[t] if q_position is None else rotate(q[t], q_position[t])
      ks = [k[u] if k_position is None else rotate(k[u], k_position[u]) for u in keys]
      scores = np.array([qt @ ku / math.sqrt(width) for ku in ks])
      if bias is not None:
        scores += np.array([bias[h, t, u] for u in keys])
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      read = sum(w * v[u] for w, u in zip(weights, keys))
      out[t] += read @ p['output']['kernel'][h]
  return out


def part(x, p, function):
  """A function with the norm before it, or with one of what it gives."""
  y = function(norm(x, p['norm']) if 'norm' in p else x)
  return norm(y, p['output_norm']) if 'output_norm' in p else y


def mlp(x, p):
  return part(x, p, lambda h: gelu(h @ p['up']['kernel']) @ p['down']['kernel'])


def encode(neighbour, mask, chunk, chunk_mask, p, table, max_offset):
  x = table[neighbour]
  length = len(x)
  positions = range(length)
  for n in range(2):
    q = p[f'layer_{n}']
    bias = None
    if n == 0:
      b = q['relative_bias']['table']
      bias = np.array(
        [
          [
            [b[h, np.clip(u - t, -max_offset, max_offset) + max_offset] for u in positions]
            for t in positions
          ]
          for h in range(b.shape[0])
        ]
      )
    h = norm(x, q['attention_norm'])
    x = x + attention(h, h, q['attention'], lambda t, u: mask[u], positions, positions, bias)
    if n == 0:
      h = norm(x, q['chunk_attention_norm'])
      x = x + attention(h, chunk, q['chunk_attention'], lambda t, u: chunk_mask[u])
    x = x + mlp(x, q['mlp'])
  return x


def logits(
  p,
  tokens,
  segments,
  neighbours,
  mask,
  *,
  chunk_len,
  layers,
  max_offset,
  scale=1.0,
  interpolation=1.0,
  parallel=False,
):
  """Logits [L, V] of one sequence; neighbours [N, K, R]. Lengths are multiples of chunk_len."""
  table = p['embedding']['table'] * scale
  encoder_table = p.get('encoder_embedding', p['embedding'])['table'] * scale
  x = table[tokens]
  length = len(tokens)
  positions = range(length)
  encoded = None
  for n in range(len([k for k in p if k.startswith('decoder_')])):
    q = p[f'decoder_{n}']
    see = lambda t, u: u <= t and segments[u] == segments[t]
    attend = lambda h: attention(
      h, h, q['self_attention']['attention'], see, positions, positions, interpolation=interpolation
    )
    before = x
    x = x + part(x, q['self_attention'], attend)
    if parallel:
      x = x + mlp(before, q['mlp'])
    if n in layers:
      c = q['cross_attention']
      h = norm(x, c['norm'])
      chunks = h.reshape(-1, chunk_len, h.shape[-1])
      real = segments.reshape(-1, chunk_len) > 0
      if encoded is None:
        encoded = [
          [
            encode(
              neighbours[u, k],
              mask[u, k],
              chunks[u],
              real[u],
              p['encoder'],
              encoder_table,
              max_offset,
            )
            for k in range(neighbours.shape[1])
          ]
          for u in range(len(neighbours))
        ]
      read = np.zeros_like(x)
      for i in positions:
        u = (i - (chunk_len - 1)) // chunk_len
        if u < 0 or segments[i] != segments[u * chunk_len] or not mask[u].any():
          continue
        keys = np.concatenate(encoded[u])
        allowed = mask[u].reshape(-1)
        k_position = list(range(mask.shape[-1])) * mask.shape[1]
        q_position = [chunk_len - 1 + i - (u * chunk_len + chunk_len - 1)]
        read[i] = attention(
          h[i : i + 1], keys, c['attention'], lambda t, v: allowed[v], q_position, k_position
        )[0]
      x = x + read
    if not parallel:
      x = x + mlp(x, q['mlp'])
  return norm(x, p['final_norm']) @ p['embedding']['table'].T
