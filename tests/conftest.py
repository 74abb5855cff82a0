"""What holds for every test: one thread a process, no hub, no colours."""

import os

# Set before torch is imported, and inherited by the processes that tests start.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    NO_COLOR="1",
)
