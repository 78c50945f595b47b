//! State source `file`: a directory of TOML files, watched.
