"""Makes tests/golden/hf: a tiny random model of each family, and its logits by transformers.

Run from the root of the repository, with torch and transformers installed (the extra `interop`):
  python tests/golden/make_hf.py [FAMILY ...]
"""

import json
from pathlib import Path
import shutil
import sys

import numpy as np
from safetensors.numpy import save_file
import tokenizers
import torch
import transformers

FOLDER = Path('tests/golden/hf')
VOCAB_SIZE, LENGTH = 272, 12
LLAMA = dict(
  vocab_size=VOCAB_SIZE,
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  bos_token_id=None,
  eos_token_id=0,
)
TINY = dict(
  vocab_size=64,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  max_position_embeddings=64,
  bos_token_id=None,
  eos_token_id=0,
  pad_token_id=None,
)
CONFIGS = {
  'gpt2': transformers.GPT2Config(
    vocab_size=VOCAB_SIZE, n_positions=64, n_embd=24, n_layer=2, n_head=4, bos_token_id=0,
    eos_token_id=0, layer_norm_epsilon=1e-3,
  ),
  'llama': transformers.LlamaConfig(**LLAMA, rms_norm_eps=1e-3),
  'mistral': transformers.MistralConfig(**LLAMA, sliding_window=None, head_dim=8),
  'qwen2': transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True),
  'qwen3': transformers.Qwen3Config(
    **LLAMA, head_dim=8, rope_parameters={'rope_type': 'default', 'rope_theta': 500.0}
  ),
  'olmo2': transformers.Olmo2Config(
    **TINY, num_key_value_heads=2, rms_norm_eps=1e-3,
    rope_parameters={'rope_type': 'default', 'rope_theta': 500.0},
  ),
  'gpt_neox': transformers.GPTNeoXConfig(**TINY, layer_norm_eps=1e-3, rotary_pct=0.5),
  'phi3': transformers.Phi3Config(
    **TINY, num_key_value_heads=2, rms_norm_eps=1e-3,
    rope_parameters={'rope_type': 'default', 'partial_rotary_factor': 0.5},
  ),
  'gemma': transformers.GemmaConfig(**TINY, num_key_value_heads=1, head_dim=6, rms_norm_eps=1e-3),
}  # fmt: skip

# rotary scaling of the model of Llama, whose weights are kept once
ROPES = {
  'linear': {'rope_type': 'linear', 'factor': 4.0},
  'llama3': {
    'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 0.1, 'high_freq_factor': 1.5,
    'original_max_position_embeddings': 16,
  },
  'yarn': {
    'rope_type': 'yarn', 'factor': 4.0, 'beta_fast': 2.0, 'beta_slow': 0.1,
    'original_max_position_embeddings': 16,
  },
  'yarn-mscale': {
    'rope_type': 'yarn', 'factor': 4.0, 'beta_fast': 2.0, 'beta_slow': 0.1, 'mscale': 1.5,
    'mscale_all_dim': 0.5, 'truncate': False, 'original_max_position_embeddings': 16,
  },
}  # fmt: skip
ROPE_LENGTH, ROPE_KEPT = 40, 8  # tokens, and of how many of the last the logits are kept


def make_model(config: transformers.PretrainedConfig, seed: int = 0) -> torch.nn.Module:
  """A model whose every weight, norms and biases too, is random and matters."""
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager')
  with torch.no_grad():
    for name, weight in model.named_parameters():
      offset = 1.0 if 'norm' in name or '.ln_' in name else 0.0
      scale = 0.3 if weight.ndim == 1 else 1.0 if 'wte' in name or 'embed' in name else 0.25
      is_bias = name.endswith('.bias')
      weight.copy_((0.0 if is_bias else offset) + scale * torch.randn_like(weight))
  return model.eval()


def logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
  with torch.no_grad():
    return model(torch.from_numpy(tokens)).logits.numpy()


def make_tokenizer() -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=VOCAB_SIZE,
    special_tokens=['<|end|>'],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator([Path('README.md').read_text()], trainer)
  return tokenizer


def scaled(folder: Path, rope: dict) -> torch.nn.Module:
  """The model of a folder with its rotary positions scaled."""
  rope = {'rope_theta': 500.0, **rope}
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, rope_parameters=rope, attn_implementation='eager'
  ).eval()


def make_ropes() -> None:
  tokens = np.random.default_rng(1).integers(0, VOCAB_SIZE, (1, ROPE_LENGTH))
  for kind, rope in ROPES.items():
    model = scaled(FOLDER / 'llama', rope)
    expected = {'tokens': tokens, 'logits': logits(model, tokens)[:, -ROPE_KEPT:].copy()}
    settings = {'rope_parameters': json.dumps(model.config.rope_parameters)}
    save_file(expected, FOLDER / 'llama' / f'rope-{kind}.safetensors', metadata=settings)


def main(families: list[str]) -> None:
  for family in families or CONFIGS:
    config = CONFIGS[family]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, LENGTH))
    folder = FOLDER / family
    shutil.rmtree(folder, ignore_errors=True)
    model = make_model(config)
    if family == 'mistral':  # one family in bfloat16, as published weights are
      model.to(torch.bfloat16).save_pretrained(folder)
      # read anew: rounding also hit the table of rotary frequencies, which is no weight
      model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation='eager'
      ).eval()
    else:
      model.save_pretrained(folder)
    (folder / 'generation_config.json').unlink(missing_ok=True)
    expected = {'tokens': tokens, 'logits': logits(model, tokens)}
    save_file(expected, folder / 'expected.safetensors')
    if family == 'llama':
      make_tokenizer().save(str(folder / 'tokenizer.json'), pretty=False)
      make_ropes()


if __name__ == '__main__':
  main(sys.argv[1:])
