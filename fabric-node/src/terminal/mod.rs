//! How the programs speak to a person or a script: formats, tables, exit statuses.
//!
//! Never done here: commands.

pub mod exit;
pub mod output;
