"""Commands that start a study and run the workflow on it."""
