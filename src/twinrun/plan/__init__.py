"""What a model will need in memory, before a weight is read: weights, cache, activations, logits, and what fits."""
