"""One file per loss. `objectives.NAME` has a class `Objective(BaseObjective)`, found by its name.

An objective is built with (model, config). `needs` names the shared features that the task computes
once for all of them ("image", "text", "patches"), `encode` adds its own, and `loss` turns the
features of the whole batch into `Terms`. `uses` names the towers that it trains ("image", "text",
"decoder") and the "scale" of cosines if `loss` reads it; parts of the model that no objective uses
are frozen. `objective.py` says what each method gets and may do."""
