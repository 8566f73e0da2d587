"""Measuring what a fast way is worth: interleaved timing with its own noise, and exact peak memory."""
