"""How to save memory: levers as pure functions on a model or an optimizer."""
