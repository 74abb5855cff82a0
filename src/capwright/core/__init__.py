"""What every stage stands on: errors, configuration, files, progress and the run folder."""
