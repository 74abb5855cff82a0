"""A checkpoint and held-out scenes → numbers, one file a protocol.

Reads a checkpoint folder and scenes with labels. Writes a results file (results.py) and, for the
dense probe, predictions for the report. Run: `capwright evaluate dense|retrieval|classification`.
"""
