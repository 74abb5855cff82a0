"""The last stage: a run folder's files become one self-contained HTML page.

Reads RUN/results.json and, where they exist, RUN/config.json, RUN/report_data/* and
RUN/arms/*/metrics.jsonl. Writes RUN/report.html. Run it with `capwright report RUN`.
"""
