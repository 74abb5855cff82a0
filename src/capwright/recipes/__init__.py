"""Whole runs, small enough to read: a recipe builds the configuration of every stage and calls
them in order.

A user's own recipe looks the same. Reads what the stages wrote, writes a run folder (see DESIGN in
docs/).
"""
