"""Dialogues as files write them: lists of messages, under the names of several tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from instructretro_jax.questions.fields import Row, Unusable, as_said, as_text, optional_text

MESSAGE_KEYS = ('messages', 'turns', 'conversations')
_ROLES = {
  'user': 'user', 'human': 'user', 'prompter': 'user',
  'assistant': 'assistant', 'gpt': 'assistant', 'bot': 'assistant', 'model': 'assistant',
  'system': 'system', 'developer': 'system',
}  # fmt: skip
_TOOLS = ('tool', 'function', 'function_call', 'function_response', 'observation', 'ipython')


class Dialogue(NamedTuple):
  """Turns of user and assistant in turn: the user's first, the assistant's last."""

  turns: tuple[str, ...]
  system: str | None


def dialogue_of(row: Row) -> Dialogue:
  """The dialogue of a row; its "answer" follows the last turn of the user.

  A message of the system may come first, in place of the key "system". Raises Unusable for turns
  that do not alternate, and for those of tools, which a dialogue does not make sense without.
  """
  found = next((row[key] for key in MESSAGE_KEYS if row.get(key) is not None), None)
  if not isinstance(found, list) or not all(map(_is_message, found)):
    wanted = '{"role", "content"} or {"from", "value"}'
    raise Unusable('missing_turns', f'no list of {wanted} under {", ".join(MESSAGE_KEYS)}')
  named = [str(_either(one, 'role', 'from')).strip().casefold() for one in found]
  if any(name in _TOOLS for name in named) or any(map(_calls_tools, found)):
    raise Unusable('tool_turns', f'the roles are {named}: calls of tools are not learnt')
  roles = [_ROLES.get(name, name) for name in named]
  contents = [_content(_either(one, 'content', 'value')) for one in found]
  system = optional_text(row, 'system')
  if roles and roles[0] == 'system':
    system = as_text(contents[0], 'system')
    roles, contents = roles[1:], contents[1:]
  if row.get('answer') is not None:
    roles.append('assistant')
    contents.append(row['answer'])
  if not roles or len(roles) % 2 or roles != ['user', 'assistant'] * (len(roles) // 2):
    raise Unusable('wrong_turns', f'the roles are {roles[:20]}, the last to be learnt')
  return Dialogue(tuple(as_said(text, 'turn') for text in contents), system)


def _either(message: Mapping[str, Any], *keys: str) -> Any:
  return next((message[key] for key in keys if message.get(key) is not None), None)


def _is_message(value: Any) -> bool:
  if not isinstance(value, Mapping) or not isinstance(_either(value, 'role', 'from'), str):
    return False
  return 'content' in value or 'value' in value


def _calls_tools(message: Mapping[str, Any]) -> bool:
  return any(bool(message.get(key)) for key in ('tool_calls', 'function_call')) or (
    message.get('content') is None and 'tool_calls' in message
  )


def _content(value: Any) -> Any:
  """Parts {"type": "text", "text"} as one text; anything else as it is."""
  if (
    isinstance(value, list)
    and value
    and all(isinstance(part, Mapping) and part.get('type') == 'text' for part in value)
  ):
    texts = [part.get('text') for part in value]
    return '\n\n'.join(texts) if all(isinstance(text, str) for text in texts) else value
  return value
