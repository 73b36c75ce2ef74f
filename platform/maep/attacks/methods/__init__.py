"""One file an attack: a function from an `AttackTask` to attacked images, registered by name (maep.registry)."""
