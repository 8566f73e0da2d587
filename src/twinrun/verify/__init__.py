"""Judge two runs of one model: align, measure against an oracle, decide, explain. Sees records, no runner."""
