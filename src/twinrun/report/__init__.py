"""Records become something to read: terminal tables, PNG plots, JSON files, one self-contained HTML page."""
