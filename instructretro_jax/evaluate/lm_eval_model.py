"""A checkpoint as a model of EleutherAI's lm-evaluation-harness; needs the extra `lm_eval`."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import reprlib
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from instructretro_jax.inference.answer import MAX_NEW, Request
from instructretro_jax.inference.batching import check_batch_size
from instructretro_jax.inference.checks import check_kinds, from_json
from instructretro_jax.inference.prompt_files import seed_of_line
from instructretro_jax.inference.score import longest_scored, score_tokens
from instructretro_jax.inference.session import open_sampler
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.retrieval.retriever import RandomRetriever

_GATES = {'on': 1.0, 'off': 0.0, 'random': 1.0}
_OF_TORCH = {'device', 'max_batch_size'}  # the harness gives them to every model
_GENERATION = {  # what the harness calls fields of a request
  'max_gen_toks': 'max_new',
  'until': 'stop',
  'temperature': 'temperature',
  'top_k': 'top_k',
  'top_p': 'top_p',
  'repetition_penalty': 'penalty',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelArguments:
  """What `--model_args` may say; `batch_size` is an option of its own.

  Attributes:
    checkpoint: folder of an arm, or imported.
    index: run folder whose index is searched for neighbours.
    gate: a number, scale of the cross-attention; 'on' is 1, 'off' 0; 'random' is 1 with chunks of
      the index that have nothing to do with the text. 1 with an index, else 0.
    tensor: devices here that share each weight.
    max_length: tokens that a text may have before its last; what the model is for if not given.
    batch_size: the most texts at a time.
  """

  checkpoint: str
  index: str | None = None
  gate: float | str | None = None
  tensor: int = 1
  max_length: int | None = None
  batch_size: int = 1

  def __post_init__(self):
    check_kinds(self)
    check_batch_size(self.batch_size)
    if isinstance(self.gate, str) and self.gate not in _GATES:
      raise ValueError(f'gate={self.gate} is no number and none of {", ".join(_GATES)}')
    if self.scale and self.index is None:
      raise ValueError(f'gate={self.gate}, but no neighbours to read: give index=RUN, or gate=0')
    if self.max_length is not None and self.max_length < 1:
      raise ValueError(f'max_length={self.max_length} is 1 or more')

  @property
  def scale(self) -> float | None:
    """Of the cross-attention, if the gate says it."""
    return _GATES[self.gate] if isinstance(self.gate, str) else self.gate


def parse_arguments(given: dict[str, Any]) -> ModelArguments:
  """The arguments as the harness has read them. Raises StageError for what cannot be met."""
  given = {name: value for name, value in given.items() if name not in _OF_TORCH}
  if str(given.get('batch_size')).isdecimal():
    given['batch_size'] = int(given['batch_size'])  # which it leaves a text
  try:
    if given.get('checkpoint') is None:
      raise ValueError('give checkpoint=FOLDER, of an arm or imported')
    return ModelArguments(**from_json(ModelArguments, given))
  except ValueError as error:
    raise StageError(f'model_args: {error}') from error


@register_model('instructretro')
class InstructRetroLM(TemplateLM):
  """Scores as `score` and writes as `generate`; texts that are too long lose their beginning.

  Raises StageError for arguments that cannot be met, and as `open_sampler` does.
  """

  def __init__(self, **model_arguments: Any):
    super().__init__()
    given = parse_arguments(model_arguments)
    checkpoint, index = (
      None if name is None else to_path(name) for name in (given.checkpoint, given.index)
    )
    self.sampler, self.gate = open_sampler(
      checkpoint, index, given.scale, given.tensor, batch_size=given.batch_size
    )
    if given.gate == 'random':
      self.sampler.retriever = RandomRetriever(self.sampler.retriever)
    bound = longest_scored(self.sampler)
    self.max_length = given.max_length or bound or self.sampler.config.decoder.max_len
    if bound is not None and self.max_length > bound:
      raise StageError(
        f'model_args: max_length={self.max_length}: {checkpoint} has room for {bound}'
      )

  @property
  def eot_token_id(self) -> int:
    """The token that ends a document."""
    return self.sampler.vocab.eos_id

  @property
  def prefix_token_id(self) -> int:
    """What stands before a text without context: the start token, or else that of the end."""
    return (*self.sampler.vocab.start_ids, self.eot_token_id)[0]

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    """The tokens of a text as `score` has them; without start tokens if those are False."""
    if add_special_tokens is False:
      return self.sampler.vocab.encode(string)
    return self.sampler.tokenize(string)

  def loglikelihood_rolling(
    self, requests: Sequence[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-probability (nats) of each whole text, in windows of the most tokens that fit."""
    texts, owners = [], []
    for n, request in enumerate(requests):
      tokens = self.tok_encode(*request.args, add_special_tokens=False)
      windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
      for window in windows:
        texts.append((None, *make_disjoint_window(window)))
        owners.append(n)
    sums = [0.0] * len(requests)
    for n, (nats, _) in zip(owners, self._loglikelihood_tokens(texts, disable_tqdm)):
      sums[n] += nats
    for request, nats in zip(requests, sums):
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, nats)
    return sums

  def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    """What is written after each context, up to the first of its stop texts.

    Raises StageError for generation arguments that are unknown or cannot be met.
    """
    try:
      asked = [self._request(n, *request.args) for n, request in enumerate(requests)]
      answers = self.sampler.generate(asked, show_progress=not disable_tqdm)
    except ValueError as error:
      raise StageError(f'generation arguments: {error}') from error
    for request, answer in zip(requests, answers):
      self.cache_hook.add_partial('generate_until', request.args, answer.text)
    return [answer.text for answer in answers]

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
  ) -> list[tuple[float, bool]]:
    """Log-probability of each continuation, and whether greedy decoding would write it."""
    texts = []
    for asked, context, continuation in requests:
      if not 0 < len(continuation) <= self.max_length:
        raise StageError(
          f'{reprlib.repr(asked)}: the continuation has {len(continuation)} tokens, and may have 1 '
          f'to {self.max_length} (max_length)'
        )
      texts.append((context + continuation)[-self.max_length - 1 :])
    found, gate = [], self.gate or None
    scores = score_tokens(self.sampler, texts, gate, show_progress=not disable_tqdm)
    for (asked, _, continuation), of_text in zip(requests, scores):
      T = len(continuation)
      found.append((sum(of_text.nats[-T:]), all(of_text.is_likeliest[-T:])))
      if asked is not None:  # else a window of `loglikelihood_rolling`
        self.cache_hook.add_partial('loglikelihood', asked, found[-1])
    return found

  def _request(self, place: int, context: str, arguments: dict[str, Any]) -> Request:
    """The request of a context, which loses its beginning if it does not fit."""
    given = normalize_gen_kwargs(arguments, MAX_NEW)
    if not given.pop('do_sample'):
      given['temperature'] = 0.0
    if unknown := sorted(given.keys() - _GENERATION.keys()):
      raise ValueError(f'{unknown} is unknown; there are {["do_sample", *_GENERATION]}')
    if (num_new := given['max_gen_toks']) >= self.max_length:
      raise ValueError(
        f'max_gen_toks={num_new} leaves no room for a context: the model has {self.max_length} '
        'places, so give less'
      )
    tokens = self.tok_encode(context) or [self.prefix_token_id]
    tokens, _ = maybe_truncate(tokens, num_new, self.max_length)
    given['until'] = tuple(text for text in given['until'] if text)
    return Request(
      prompt=tuple(tokens),
      gate=self.gate,
      seed=seed_of_line(0, place),
      **{_GENERATION[name]: value for name, value in given.items()},
    )
