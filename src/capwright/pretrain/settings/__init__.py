"""The dials of each objective, one file each, without torch so that recipes are cheap to read."""
