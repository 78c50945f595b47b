//! Commands that ask the daemon: `status`, `peers`, `pods`, `routes`, `drops`.

use std::{future::Future, path::Path, process::ExitCode, time::Duration};

use anyhow::Context;
use fabric_proto::admin::{Document, Status};
use tokio::time::{Instant, sleep, timeout_at};

use crate::admin::{
    STATE_READY,
    client::{Client, ClientError, TIMEOUT},
};
use crate::terminal::{
    exit::{FAILED, Failure},
    output::{Format, Output},
};

/// Time between two looks of `status --wait`.
const WAIT_INTERVAL: Duration = Duration::from_millis(200);

/// Arguments of `fabric status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Wait until the daemon is ready.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait: a number with ms, s, m or h.
    #[arg(long, default_value = "30s", value_parser = parse_duration, value_name = "DURATION", requires = "wait")]
    pub wait_duration: Duration,
}

/// Arguments of `fabric drops`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DropsArgs {
    /// Also the reasons that never occurred (json and yaml always list them all).
    #[arg(long)]
    pub all: bool,
}

/// `fabric status`.
///
/// # Errors
///
/// The daemon does not answer, or does not become ready in time.
pub fn status(socket: &Path, output: Output, args: &StatusArgs) -> Result<ExitCode, Failure> {
    let client = Client::new(socket, TIMEOUT);
    let document = block_on(async {
        if args.wait {
            wait_ready(&client, args.wait_duration).await
        } else {
            Ok(client.status().await?)
        }
    })?;
    output.document(&document)?;
    Ok(if document.content.state == STATE_READY {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

/// `fabric peers`.
///
/// # Errors
///
/// The daemon does not answer.
pub fn peers(socket: &Path, output: Output) -> Result<ExitCode, Failure> {
    let document = block_on(async { Ok(Client::new(socket, TIMEOUT).peers().await?) })?;
    print_list(
        output,
        &document,
        document.content.items.is_empty(),
        "peers",
    )
}

/// `fabric pods`.
///
/// # Errors
///
/// The daemon does not answer.
pub fn pods(socket: &Path, output: Output) -> Result<ExitCode, Failure> {
    let document = block_on(async { Ok(Client::new(socket, TIMEOUT).pods().await?) })?;
    print_list(output, &document, document.content.items.is_empty(), "pods")
}

/// `fabric routes`.
///
/// # Errors
///
/// The daemon does not answer.
pub fn routes(socket: &Path, output: Output) -> Result<ExitCode, Failure> {
    let document = block_on(async { Ok(Client::new(socket, TIMEOUT).routes().await?) })?;
    print_list(
        output,
        &document,
        document.content.items.is_empty(),
        "routes",
    )
}

/// `fabric drops`.
///
/// # Errors
///
/// The daemon does not answer.
pub fn drops(socket: &Path, output: Output, args: DropsArgs) -> Result<ExitCode, Failure> {
    let mut document = block_on(async { Ok(Client::new(socket, TIMEOUT).drops().await?) })?;
    if !args.all && matches!(output.format, Format::Table | Format::Wide) {
        document.content.items.retain(|drop| drop.packets > 0);
    }
    print_list(
        output,
        &document,
        document.content.items.is_empty(),
        "drops",
    )
}

fn print_list<T: serde::Serialize + crate::terminal::output::Show>(
    output: Output,
    document: &Document<T>,
    empty: bool,
    what: &str,
) -> Result<ExitCode, Failure> {
    if empty && matches!(output.format, Format::Table | Format::Wide) {
        output.say(&format!("No {what}."));
    } else {
        output.document(document)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks until the daemon is ready. A daemon that is not there yet is waited for, too.
async fn wait_ready(client: &Client, duration: Duration) -> Result<Document<Status>, Failure> {
    let deadline = Instant::now() + duration;
    let mut last = "it did not answer".to_owned();
    loop {
        match timeout_at(deadline, client.status()).await {
            Ok(Ok(document)) if document.content.state == STATE_READY => return Ok(document),
            Ok(Ok(document)) => {
                last = format!(
                    "{}: {}",
                    document.content.state,
                    document.content.reasons.join("; ")
                );
            }
            Ok(Err(error @ (ClientError::Permission { .. } | ClientError::Document { .. }))) => {
                return Err(error.into());
            }
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => {}
        }
        if Instant::now() + WAIT_INTERVAL >= deadline {
            let text = format!("the daemon was not ready after {duration:?}; {last}");
            return Err(Failure::TimedOut(text));
        }
        sleep(WAIT_INTERVAL).await;
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(future)
}

/// `500ms`, `30s`, `5m`, `1h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is not a duration: write a number with ms, s, m or h, as in 30s");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(wrong()),
    };
    // A year is as good as for ever, and later arithmetic on instants cannot overflow.
    const MILLISECONDS_MAX: u64 = 365 * 24 * 60 * 60 * 1000;
    match number.checked_mul(factor_ms) {
        Some(ms) if ms <= MILLISECONDS_MAX => Ok(Duration::from_millis(ms)),
        _ => Err(format!("{text:?} is more than a year")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Durations are numbers with a unit; anything else is refused with an example.
    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "30 s",
            "1d",
            "99999999999999999999s",
            "9999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
    }
}
