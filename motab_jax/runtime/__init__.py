"""What a run stands on: devices, processes, checkpoints, logs. Nothing here knows of models or of text."""
