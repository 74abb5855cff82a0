"""Capwright: better captions for an image-text corpus, and what they buy in dense vision.

Data flows left to right, one folder a stage; stages meet in files:

    corpus → captions → pretrain → evaluate → report

The command is `capwright`; `capwright --help` lists what it can do. Every stage is also a
function: a frozen config dataclass and `run(config) -> Summary`.
"""

__version__ = "0.1.0"
