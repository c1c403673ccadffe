"""Where the processes of a run go, and how they start as Ray actors."""
