"""Curves for the terminal and as SVG: one scale, one set of ticks and one thinning for both."""
