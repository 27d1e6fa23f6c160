"""What an arm is held to before it trains, or trains longer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructretro_jax.model.config import DecoderConfig
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text.vocabulary import Vocabulary
from instructretro_jax.train.optimizer import Optimizer


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
