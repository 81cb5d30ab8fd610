"""Readers that turn data sets, classes, texts and labels on disk into tables."""
