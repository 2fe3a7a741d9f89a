"""Problems, literal oracles and the harness that verifies a method before it times it."""
