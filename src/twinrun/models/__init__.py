"""Models: loading, the parts of an architecture, running one precision up. The only importer of transformers internals."""
