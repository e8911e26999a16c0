"""The lint of the first batch: evidence gathered once, then checked from several sides."""
