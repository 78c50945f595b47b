//! Configuration of the daemon: one TOML file, unknown keys refused, defaults named here.
