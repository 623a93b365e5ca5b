"""Export of trained models, and clients of what was exported."""
