"""Reading checkpoints: which tensors a network needs, where they lie, in which precision they are held."""
