"""One file per loss. `objectives.NAME` has a class `Objective(nn.Module)`, found by its name.

An objective is built with (model, config) and called with (model, batch, group); it returns a
scalar loss whose mean over ranks is the loss of the global batch. `uses` names the towers that it
trains ("image", "text"); parts of the model that no objective uses are frozen.
"""
