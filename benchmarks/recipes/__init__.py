"""The automatic recipe beside flagfiles, on one's own sets and on three that are drawn."""
