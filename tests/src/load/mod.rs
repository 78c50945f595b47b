//! Loads for labs whose every byte is checked, and what the daemons look like under them.
//!
//! [`content`] says which byte belongs where in which stream, [`streams`] sends and checks many
//! streams at once, [`datagrams`] sends UDP beside them, [`kernel`] asks what the kernel lost or sent
//! again, [`memory`] samples what processes hold. [`corruption`] and [`endurance`] put whole runs
//! together, for tests and for the program `soak`; [`report`] writes down what they found.

pub mod content;
pub mod corruption;
pub mod datagrams;
pub mod endurance;
pub mod kernel;
pub mod memory;
pub mod report;
pub mod streams;
