"""Transfer: an encoder learns a task from labels, few or many, and is tested; one file per task."""
