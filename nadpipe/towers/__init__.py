"""Models that run: image towers by family, text towers, checkpoints and devices. Only this package knows open_clip's models."""
