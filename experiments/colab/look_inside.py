# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look inside a Retro model
#
# What it retrieves, what each token gains by it, and what it writes with its encoder on and off. It
# needs a finished run: `quickstart.ipynb` or `retrofit_own_model.ipynb` makes one.

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
ROOT = 'runs/quickstart'
ARM = 'retro_fit'  # the arm with an encoder
CHUNK = 0  # of the held-out text, where to begin
NUM_CHUNKS = 4
MAX_NEW = 64  # tokens

# %% [markdown]
# ## Neighbours
#
# A chunk of held-out text, the one after it, and the chunks of the database that are nearest to the
# first, each with its continuation. The model reads them while it writes the second.

# %%
from instructretro_jax.commands import inspection

print(inspection.describe_chunk(Path(ROOT), 'heldout', CHUNK))

# %% [markdown]
# ## Gain by token
#
# The log-probability of each token with the gate open minus that with the gate closed. The
# neighbours are looked up for the text as it stands.

# %%
from instructretro_jax.inference.score import score
from instructretro_jax.inference.session import open_sampler
from instructretro_jax.text.chunks import ChunkStore, chunk_text

sampler, gate = open_sampler(Path(ROOT) / ARM, Path(ROOT), gate=None)
store = ChunkStore(Path(ROOT) / 'chunks', 'heldout')
chunks = range(CHUNK, min(CHUNK + NUM_CHUNKS, len(store)))
text = ''.join(chunk_text(store, sampler.vocab, chunk) for chunk in chunks)
found = score(sampler, text)
gains = [0.0 if a is None else b - a for a, b in zip(found.closed, found.opened)]
print(f'{sum(gains) / (len(gains) - 1):+.4f} nats a token')

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(9, 3), layout='constrained')
colours = ['#2b9a73' if gain > 0 else '#cf4f6b' for gain in gains]
axes.bar(range(len(gains)), gains, width=1.0, color=colours)
for end in range(sampler.config.chunk_len, len(gains), sampler.config.chunk_len):
  axes.axvline(end - 0.5, color='0.6', linewidth=0.6)
axes.set(xlabel='token (lines: chunks; the first has no neighbours)', ylabel='gain, nats')
plt.show()

# %% [markdown]
# The same in the text: green is likelier with retrieval, red less likely.

# %%
import html

from IPython.display import HTML, display

spans = []
for piece, gain in zip(found.pieces, gains):
  colour = '43, 154, 115' if gain > 0 else '207, 79, 107'
  style = f'background: rgba({colour}, {min(abs(gain), 1):.2f})'
  spans.append(f'<span style="{style}" title="{gain:+.3f}">{html.escape(piece)}</span>')
display(HTML(f'<pre style="white-space: pre-wrap">{"".join(spans)}</pre>'))

# %% [markdown]
# ## Encoder on and off
#
# The same beginning continued with the gate open, with neighbours found anew for every chunk, and
# with it closed: then encoder and cross-attention are not computed at all.

# %%
from instructretro_jax.inference.answer import Request

prompt = chunk_text(store, sampler.vocab, CHUNK)
for gate in (1.0, 0.0):
  (answer,) = sampler.generate([Request(prompt=prompt, max_new=MAX_NEW, gate=gate)])
  print(f'--- gate {gate:g}\n{answer.text}\n')
