"""Checkable tasks and texts that need no download: what the built-in models learn and are measured on."""
