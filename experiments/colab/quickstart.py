# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # InstructRetro in ten minutes
#
# What `make demo` runs, from raw text to the report: a small GPT, the same GPT with retrieval
# (Retro-fitted), both tuned on instructions, and held-out perplexity with the neighbours of a text,
# with none, and with random ones. About ten minutes on two CPU cores; a GPU or TPU is used if there
# is one.

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
ROOT = 'runs/quickstart'  # the folder of the run; run again, what is there is up to date
EXPERIMENT = 'experiments/quickstart/run.gin'  # a file that the package ships, or yours
BINDINGS = []  # values of its parameters, such as 'FIT_STEPS = 400'

# %% [markdown]
# An experiment is a list of stages, each a folder below the root. Those that are up to date are
# passed over, so a notebook that was cut off goes on where it was.

# %%
from instructretro_jax.pipeline import experiment, gin_adapter

configured, operative = gin_adapter.configure(experiment.Experiment, [EXPERIMENT], BINDINGS)
for stage in configured.stages:
  print(f'{stage.name}: {stage.summary()}')

# %%
experiment.run(configured, Path(ROOT), operative=operative)

# %% [markdown]
# The loss of each arm as it was trained. The fits go on from `gpt` on the same further text, in the
# same order.

# %%
import json

from IPython.display import SVG, display

from instructretro_jax.report import plots

report = json.loads((Path(ROOT) / 'report' / 'report.json').read_text())
for plot in plots.loss_curves(report['curves']):
  display(SVG(plot))

# %% [markdown]
# Where the gain is: perplexity by the longest run of tokens that a chunk shares with the neighbours
# it reads.

# %%
display(SVG(plots.perplexity_by_run(report['perplexity'], ['gpt_fit', 'retro_fit'])))

# %% [markdown]
# The whole report is the page `report/index.html` of the root. `look_inside.ipynb` opens the model
# that was made.
