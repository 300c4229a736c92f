"""The one trainer, and networks replayed as CUDA graphs."""
