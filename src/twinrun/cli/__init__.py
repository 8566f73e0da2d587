"""The command line: one verb a file, each with `register`. Importing this imports no torch."""
