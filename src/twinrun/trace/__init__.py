"""Record two runs of one model to disk, read them back, and find where they part."""
