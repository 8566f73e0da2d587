"""Masked-diffusion language models: a canvas of masks is filled in, a few tokens a forward."""
