"""SDTP: drop prompt tokens inside the prefill, layer by layer, and decode from the pruned cache."""
