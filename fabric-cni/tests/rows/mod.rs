//! The tables, one file per family of items.

mod c01_c07_environment;
mod c08_c12_words;
mod c13_c18_add;
mod c19_c28_verbs;
mod loopback;

use crate::support::table::Row;

/// All rows, to be counted.
pub(crate) fn all() -> Vec<Row> {
    [
        c01_c07_environment::rows(),
        c08_c12_words::rows(),
        c13_c18_add::rows(),
        c19_c28_verbs::rows(),
        loopback::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
