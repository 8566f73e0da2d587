"""Prompt pruning inside prefill (SDTP): saliency, scorers and their training, schedules, selectors, the runner."""
