"""Forward hooks on an unmodified model, and recordings of its activations."""
