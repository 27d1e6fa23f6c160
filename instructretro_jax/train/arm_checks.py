"""What an arm is held to before it trains, or trains longer."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

from instructretro_jax.model.config import DecoderConfig
from instructretro_jax.model.retro import is_open
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text.vocabulary import Vocabulary
from instructretro_jax.train.gates import RANDOM
from instructretro_jax.train.optimizer import Optimizer


def check_settings(arm: Any) -> None:
  """Raises ValueError if settings of an arm (train/loop.py) are impossible, alone or together."""
  for name in ('num_steps', 'batch_size', 'num_microbatches', 'checkpoint_every'):
    if isinstance(value := getattr(arm, name), int) and value < 1:
      raise ValueError(f'{arm.name}: {name} = {value}: give at least 1')
  if arm.batch_size % arm.num_microbatches:
    raise ValueError(
      f'{arm.name}: batch_size {arm.batch_size} is no multiple of num_microbatches '
      f'{arm.num_microbatches}'
    )
  if isinstance(arm.gate, str) and arm.gate != RANDOM:
    raise ValueError(f'{arm.name}: the gate is a number or {RANDOM!r}, not {arm.gate!r}')
  if not isinstance(arm.gate, str) and not (math.isfinite(arm.gate) and arm.gate >= 0):
    raise ValueError(f'{arm.name}: the gate is {arm.gate}: give 0 or more, or {RANDOM!r}')
  if arm.keep_retro and arm.init_from is None:
    raise ValueError(f'{arm.name}: keep_retro needs init_from, the arm whose encoder it keeps')
  if is_open(arm.gate) and not arm.task.gives_neighbours(True):
    raise ValueError(
      f'{arm.name}: the gate is {arm.gate}, but its task gives no neighbours: name their stage '
      'in the task, or set gate = 0'
    )
  if arm.task.rows_hold_strangers and arm.gate != 0 and not arm.model.mask_neighbours:
    raise ValueError(
      f'{arm.name}: without mask_neighbours the dialogues of a row read the neighbours of each '
      'other: set mask_neighbours, or is_packed = False'
    )
  if arm.continue_data and arm.init_from is None:
    raise ValueError(f'{arm.name}: continue_data needs init_from, the arm whose data it continues')


def check_room(vocab: Vocabulary, decoder: DecoderConfig) -> None:
  """Raises StageError if a vocabulary has ids for which a decoder has no embedding."""
  if vocab.vocab_size > decoder.vocab_size:
    raise StageError(
      f'the vocabulary has {vocab.vocab_size} ids, the model room for {decoder.vocab_size}: raise '
      'vocab_size of the model'
    )


def check_longest(name: str, longest: int, decoder: DecoderConfig) -> None:
  """Raises StageError if texts of so many tokens are longer than a decoder is for."""
  if decoder.longest_text is not None and longest > decoder.longest_text:
    raise StageError(
      f'{name}: a text of its task has {longest} tokens, and does not fit the '
      f'{decoder.bound_in_words}: lower seq_len of the task, or raise the bound of the model'
    )


def check_enough(name: str, num_examples: int, batch_size: int) -> None:
  """Raises StageError if the examples of an epoch do not make one batch."""
  if num_examples < batch_size:
    raise StageError(
      f'{name}: its task has {num_examples} examples, too few for one batch of {batch_size}: give '
      'more text, or lower batch_size'
    )


def is_longer(
  name: str, there: Mapping[str, Any], asked: Mapping[str, Any], optimizer: Optimizer
) -> bool:
  """Whether an arm is asked for that differs from the one there only by having more steps.

  Args:
    there, asked: arguments of the two arms, as `configuration.identity` gives them.
    optimizer: of the arm that is asked for.

  Raises StageError if it is, but its learning rates would have been others from the first.
  """
  fewer, more = there.get('num_steps', 0), asked['num_steps']
  if {**there, 'num_steps': more} != asked or fewer >= more:
    return False
  if not optimizer.is_open_ended:
    raise StageError(
      f'{name} was to be trained for {fewer} steps, and its cosine schedule falls to the final '
      f'rate at the last: with {more} all rates would have been others. Train another arm from it '
      f'(init_from = {name!r}), with moments and rates of its own, or this one anew with '
      f"--rebuild={name}. Arms with lr_schedule = 'wsd' or final_lr_fraction = 1.0 can be trained "
      'longer'
    )
  return True
