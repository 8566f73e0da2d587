"""Numbers only: precisions and their ulps, and float32 statistics streamed block by block. Knows no model."""
