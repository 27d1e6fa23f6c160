"""What the files of a Hugging Face model say of its tokens: start, ends and chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from pathlib import Path
from typing import Any

from instructretro_jax.pipeline import foreign

# the tokenizer's own, then the model's
_FILES = (
  'tokenizer_config.json', 'special_tokens_map.json', 'config.json', 'generation_config.json'
)  # fmt: skip
_TEMPLATES = ('chat_template.jinja', 'chat_template.json')
# classes of transformers that begin a text with their start token unless told otherwise
_STARTING = ('Llama', 'CodeLlama', 'Gemma')

Spelling = Callable[[int], str | None]  # of a token by its id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
  """What the files of a model say of the tokens of its vocabulary.

  Attributes:
    eos_token: ends a document; None: what the vocabulary itself says.
    end_tokens: end an answer, besides that.
    start_token: begins a text, '' if none does; None: what the vocabulary itself says.
    bos_token: what its chat template calls the start of a text.
    chat_template: how the model is asked, in the language of jinja2.
  """

  eos_token: str | None = None
  end_tokens: tuple[str, ...] = ()
  start_token: str | None = None
  bos_token: str | None = None
  chat_template: str | None = None


def files(folder: Path) -> tuple[Path, ...]:
  """The files of a folder that `read` reads."""
  return tuple(path for name in (*_FILES, *_TEMPLATES) if (path := folder / name).is_file())


def read(folder: Path, spelling: Spelling) -> Names:
  """The names that a folder gives; files that are not there say nothing.

  The first end token ends documents: that of the tokenizer, else that of the model.

  Raises StageError for a file that cannot be read.
  """
  contents = [
    foreign.read_json(folder / name) if (folder / name).exists() else {} for name in _FILES
  ]
  ends: list[str] = []
  for content in contents:
    ids = content.get('eos_token_id')
    named = [_content(content.get('eos_token'))]
    named += map(spelling, ids if isinstance(ids, list) else [] if ids is None else [ids])
    ends += [name for name in named if name]
  eos_token, *others = dict.fromkeys(ends) or [None]
  bos_token = next((t for c in contents if (t := _content(c.get('bos_token')))), None)
  if bos_token is None:
    ids = [c.get('bos_token_id') for c in contents if isinstance(c.get('bos_token_id'), int)]
    bos_token = spelling(ids[0]) if ids else None
  return Names(
    eos_token=eos_token,
    end_tokens=tuple(others),
    start_token=_start_token(contents[0], bos_token),
    bos_token=bos_token,
    chat_template=_chat_template(folder, contents[0]),
  )


def _content(token: Any) -> str | None:
  """A token of a configuration: its text, or an object around that."""
  return token.get('content') if isinstance(token, Mapping) else token


def _start_token(config: Mapping[str, Any], bos_token: str | None) -> str | None:
  is_put = config.get('add_bos_token')
  if is_put is None and str(config.get('tokenizer_class')).startswith(_STARTING):
    is_put = True
  if is_put is None or (is_put and bos_token is None):
    return None  # the tokenizer says it
  return bos_token if is_put else ''


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
  """The text of the template; of several, the one called default."""
  plain, wrapped = (folder / name for name in _TEMPLATES)
  if plain.exists():
    foreign.check(plain)
    return plain.read_text(encoding='utf-8')
  found = config.get('chat_template')
  if found is None and wrapped.exists():
    found = foreign.read_json(wrapped).get('chat_template')
  if isinstance(found, list):
    named = {t.get('name'): t.get('template') for t in found if isinstance(t, Mapping)}
    found = named.get('default', next(iter(named.values()), None))
  return found if isinstance(found, str) else None
