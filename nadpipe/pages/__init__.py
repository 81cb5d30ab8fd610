"""Figures, pictures and pages, made from the tables and artifacts of a run."""
