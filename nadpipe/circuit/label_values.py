"""Values of label maps. This module imports nothing heavy: readers of classes use it before the first job."""

IGNORED = -1  # class of a pixel that is not evaluated
