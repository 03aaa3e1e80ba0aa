"""What the actors of every Ray Data graph have in common."""

from typing import Any

RESTARTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 2}
"""An actor may die with its node any number of times; a block that kills its actor is given up after two more
tries. Bounding the restarts too would let a pool of one wait for ever."""
