"""Pointless messages are dropped, and nothing else is."""

import os
import subprocess
import sys

import pytest

from instructretro_jax.pipeline import quiet


def stderr_of(code, returncode=0):
  """What a process of its own writes to stderr."""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.returncode == returncode, done.stderr
  return done.stderr


def test_python_messages():
  text = stderr_of("""
import logging, warnings
from instructretro_jax.pipeline import quiet
quiet.quieten()
quiet.quieten()
from absl import logging as absl_logging
absl_logging.warning('Metadata file does not exist: a/_CHECKPOINT_METADATA')
absl_logging.warning('the disk is full')
logging.warning('apitools not found, and more')
logging.warning('something else')
warnings.warn('is odd')
""")
  disk, other, odd = text.splitlines()
  assert 'the disk is full' in disk and 'something else' in other
  assert odd.startswith('UserWarning: is odd (<string>:')


@pytest.mark.slow
def test_tensorflow_starts_without_notes_unless_asked(monkeypatch):
  monkeypatch.delenv('TF_CPP_MIN_LOG_LEVEL')
  code = 'from instructretro_jax.pipeline import quiet; quiet.quieten(); import tensorflow'
  assert 'tensorflow/core' not in stderr_of(code)
  monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '0')
  assert 'tensorflow/core' in stderr_of(code)


def test_native_notes_are_dropped_while_it_is_open(capfd):
  note = 'I0000 00:00:1795859399.564427    2630 factory.cc:58] Size: 3'
  with quiet.without_native_notes():
    os.write(
      2, f'WARNING: All log messages before absl::InitializeLog() is called\n{note}\n'.encode()
    )
    os.write(2, b'W0000 00:00:1.2 3 a.cc:1] odd\nE0000 00:00:1.2 3 a.cc:1] wrong\nelse\n')
  os.write(2, note.encode())
  assert capfd.readouterr().err == f'E0000 00:00:1.2 3 a.cc:1] wrong\nelse\n{note}'


def test_the_last_words_of_a_library_that_aborts_are_heard():
  code = """
import os
from instructretro_jax.pipeline import quiet
with quiet.without_native_notes():
  os.write(2, b'I0000 note\\nF0000 gone\\n')
  os.abort()
"""
  assert stderr_of(code, returncode=-6) == 'F0000 gone\n'
