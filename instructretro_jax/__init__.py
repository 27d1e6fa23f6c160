"""InstructRetro in JAX: retrieval-augmented continued pretraining and instruction tuning."""

__version__ = '0.1.0'
