"""Models: loading, the parts of an architecture, running one precision up. Alone in knowing transformers internals."""
