"""A BERT of random weights and a small run folder, so that most tests need no download."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import sentencepiece
import tokenizers

from instructretro_jax.pipeline import stage
from instructretro_jax.pipeline.array_store import write_shard
from instructretro_jax.retrieval.embeddings import Embeddings
from instructretro_jax.retrieval.word_vectors import WordVectors
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import SPLITS, split_into_chunks

CHUNK_LEN = 8
WORDS = ['ape', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu', 'hen', 'ibis', 'jay', 'kite', 'lynx']


@pytest.fixture(scope='session')
def bert_folder(tmp_path_factory):
  """Files of a BERT of 2 layers; its tokenizer asks for truncation and padding, as MiniLM's."""
  folder = tmp_path_factory.mktemp('bert')
  pieces = {piece: n for n, piece in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *WORDS])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = tokenizers.processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  tokenizer.enable_truncation(5)
  tokenizer.enable_padding(length=12)
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {
    'model_type': 'bert', 'hidden_act': 'gelu', 'hidden_size': 16, 'num_hidden_layers': 2,
    'num_attention_heads': 4, 'intermediate_size': 32, 'layer_norm_eps': 1e-12,
    'max_position_embeddings': 64, 'type_vocab_size': 2, 'vocab_size': len(pieces),
  }  # fmt: skip
  (folder / 'config.json').write_text(json.dumps(config))
  dense = {'attention.self.query': (16, 16), 'attention.self.key': (16, 16),
           'attention.self.value': (16, 16), 'attention.output.dense': (16, 16),
           'intermediate.dense': (32, 16), 'output.dense': (16, 32)}  # fmt: skip
  shapes = {'word_embeddings': (len(pieces), 16), 'position_embeddings': (64, 16),
            'token_type_embeddings': (2, 16)}  # fmt: skip
  shapes = {f'embeddings.{name}.weight': shape for name, shape in shapes.items()}
  norms = ['embeddings.LayerNorm']
  for n in range(2):
    for name, shape in dense.items():
      shapes[f'encoder.layer.{n}.{name}.weight'] = shape
      shapes[f'encoder.layer.{n}.{name}.bias'] = shape[:1]
    norms += [f'encoder.layer.{n}.{part}output.LayerNorm' for part in ('attention.', '')]
  shapes |= {f'{norm}.{part}': (16,) for norm in norms for part in ('weight', 'bias')}
  rng = np.random.default_rng(0)
  tensors = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
  for name in tensors:  # with large biases all texts would look alike
    if name.endswith('.bias'):
      tensors[name] /= 10
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallVocabulary(stage.Stage):
  """SentencePiece with one piece for each of WORDS, so that a word is a token."""

  name: str = 'vocabulary'

  def build(self, root, folder):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([' '.join(WORDS)]), model_writer=model, vocab_size=340,
      byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False,
      add_dummy_prefix=False, hard_vocab_limit=False, user_defined_symbols=[f'{w} ' for w in WORDS],
      model_type='bpe', pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / vocabulary.SENTENCEPIECE_FILE).write_bytes(model.getvalue())
    return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallChunks(stage.Stage):
  """A chunk store of given documents, by split and shard."""

  name: str = 'chunks'
  train: tuple[tuple[str, ...], ...]
  heldout: tuple[tuple[str, ...], ...]

  def reads(self):
    return ('vocabulary',)

  def build(self, root, folder):
    vocab = vocabulary.load(root / 'vocabulary')
    for split in SPLITS:
      for shard, texts in enumerate(getattr(self, split)):
        parts = [
          split_into_chunks(np.array([*vocab.encode(text), vocab.eos_id]), CHUNK_LEN, vocab.pad_id)
          for text in texts
        ]
        sizes = [len(length_M) for _, length_M in parts]
        write_shard(folder, f'{split}-tokens', shard, np.concatenate([t for t, _ in parts]))
        write_shard(folder, f'{split}-length', shard, np.concatenate([n for _, n in parts]))
        owner_M = np.repeat(np.arange(len(texts), dtype=np.int32), sizes)
        write_shard(folder, f'{split}-document', shard, owner_M)
        rows = [
          {'id': f'{shard}/{n}', 'source': 'test', 'group': f'{shard}/{n // 3}', 'num_chunks': size}
          for n, size in enumerate(sizes)
        ]
        pq.write_table(
          pa.Table.from_pylist(rows), folder / f'{split}-documents-{shard:05d}.parquet'
        )
    return {}


def document(seed: int, num_words: int) -> str:
  """Words in an order by the seed, each with a space after it: a token a word."""
  words = np.random.default_rng(seed).choice(WORDS, num_words)
  return ''.join(f'{word} ' for word in words)


@pytest.fixture(scope='session')
def built_run_folder(tmp_path_factory, bert_folder) -> Path:
  """What `run_folder` copies; not to be changed.

  Root with vocabulary, chunks and embeddings: 22 train documents in 2 shards, 7 held out.

  Lengths vary; some documents end exactly with a chunk, so that the end of document stands alone
  in the next; two documents of different shards are equal, so that near duplicates exist.
  """
  root = tmp_path_factory.mktemp('built') / 'root'
  train = [document(seed, 5 + 3 * seed) for seed in range(20)] + [document(30, 2 * CHUNK_LEN)]
  train.append(train[4])
  heldout = [document(100 + seed, 4 * seed + 8) for seed in range(7)]
  for s in (
    SmallVocabulary(),
    SmallChunks(
      train=(tuple(train[:9]), tuple(train[9:])), heldout=(tuple(heldout[:3]), tuple(heldout[3:]))
    ),
    Embeddings(embedder=WordVectors(path=str(bert_folder))),
  ):
    stage.run(s, root)
  return root


@pytest.fixture
def run_folder(tmp_path, built_run_folder) -> Path:
  """A copy of `built_run_folder` for each test."""
  return Path(shutil.copytree(built_run_folder, tmp_path / 'root'))
