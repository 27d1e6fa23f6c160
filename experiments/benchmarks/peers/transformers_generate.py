"""A worker: `generate` of Hugging Face transformers on torch, in its own environment."""

import json
from pathlib import Path
import sys
import zlib

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))
from workers import serve


def main() -> None:
  asked = json.loads(sys.argv[1])
  torch.set_num_threads(asked['threads'])
  model = transformers.AutoModelForCausalLM.from_pretrained(asked['folder'], dtype=torch.float32)
  model.eval()
  model.generation_config.eos_token_id = None  # so that every answer has the same length
  prompts = torch.tensor(asked['prompts'])
  options = {'max_new_tokens': asked['num_new'], 'do_sample': False, 'pad_token_id': 0}

  def run() -> float:
    with torch.inference_mode():
      found = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    new = found[:, prompts.shape[1] :]
    return float(zlib.crc32(new.to(torch.int32).numpy().tobytes()))

  serve(run, {'torch': torch.__version__, 'transformers': transformers.__version__})


if __name__ == '__main__':
  main()
