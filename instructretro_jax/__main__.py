"""`python -m instructretro_jax`."""

from instructretro_jax.main import console

console()
