//! The only place that wires and spawns.
