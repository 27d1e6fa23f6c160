"""The commands `import` and `export`. What they use is imported when they run."""

from __future__ import annotations

from pathlib import Path

import click

from instructretro_jax.commands.paths import ANY, EXISTING


@click.command('import')
@click.option('--source', required=True, help='Hugging Face folder, .gguf, Megatron, or smollm2.')
@click.option('--out', required=True, type=ANY, help='Stage folder to make.')
@click.option('--tokenizer', help='tokenizer.json or SentencePiece .model, if not in the source.')
@click.option('--eos_token', help='Token that ends a document, if not the one the source names.')
def import_weights(source: str, out: Path, tokenizer: str | None, eos_token: str | None) -> None:
  """Makes a checkpoint of given weights; training starts from it, every command opens it.

  The source is a Hugging Face folder (GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, Qwen3, OLMo 2, Phi-3,
  Gemma), a GGUF file of the Llama architecture, a Megatron checkpoint, or the word smollm2
  (SmolLM2-135M-Instruct, from a package).

  Example: instructretro import --source=tests/golden/hf/llama --out=runs/imported/llama
  """
  from instructretro_jax.interop import stages

  made = stages.import_alone(source, out, tokenizer, eos_token)
  click.echo(f'{out}: {made.counts["parameters"]:,} parameters from {made.counts["format"]}')


@click.command()
@click.option('--checkpoint', required=True, type=EXISTING)
@click.option('--out', required=True, type=ANY, help='Folder to make.')
@click.option(
  '--format',
  'kind',
  default='huggingface',
  show_default=True,
  type=click.Choice(['huggingface', 'megatron']),
)
@click.option('--tokenizer', type=EXISTING, help='tokenizer.json.')
def export(checkpoint: Path, out: Path, kind: str, tokenizer: Path | None) -> None:
  """Writes a checkpoint for other tools.

  As huggingface: the decoder alone, in a folder that transformers opens, with the tokenizer.json
  of the checkpoint's folder or the given one. As megatron: the whole model.

  Example: instructretro export --checkpoint=runs/imported/llama --out=runs/exported/llama
  """
  from instructretro_jax.interop import stages

  stages.export(checkpoint, out, kind, tokenizer)
  click.echo(f'{out}: written as {kind}')
