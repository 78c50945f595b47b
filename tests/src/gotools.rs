//! Programs of others that the tests drive, built by the Go toolchain at pinned versions.
