"""Hostile files: made by `corpus`, opened by `open_all` in a process of bounded memory, judged by the test."""
