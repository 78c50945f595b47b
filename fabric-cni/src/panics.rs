//! A panic is a mistake in the plugin; the runtime still gets its words, and may try again.

use std::{
    panic::{self, PanicHookInfo},
    process,
};

use crate::{
    error::CniError,
    output::{self, Printed},
};

/// Makes every panic from here on print an error with code 999 and end the program with status 1.
/// Without this, a release program would end by a signal and with no word on stdout.
pub fn report_panics() {
    panic::set_hook(Box::new(|panic| {
        let status = worded(panic).write();
        #[expect(
            clippy::disallowed_methods,
            reason = "the release program aborts after the hook; what is left behind is cleaned up by later calls"
        )]
        process::exit(i32::from(status));
    }));
}

/// The version is the newest: a panic does not know what was asked for.
fn worded(panic: &PanicHookInfo<'_>) -> Printed {
    let message = panic.payload_as_str().unwrap_or("panic without words");
    let what = match panic.location() {
        Some(place) => format!("{message} ({place})"),
        None => message.to_owned(),
    };
    Printed {
        stderr: format!("fabric-cni: {what}\n"),
        ..output::failure(None, &CniError::internal(&what))
    }
}
