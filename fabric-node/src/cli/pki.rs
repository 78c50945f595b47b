//! `fabric pki`: the cluster's certificate authority, on files.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Subcommand;
use fabric_proto::admin::{API_VERSION, Document};
use serde::Serialize;

use crate::terminal::{
    exit::Failure,
    output::{Format, Output, Show},
};
use crate::{
    node_id::NodeId,
    pki::{
        authority::{self, AUTHORITY_DAYS, DAYS_MAX, NODE_DAYS},
        files::{self, CA_CERTIFICATE, CA_KEY, NodeFiles, Overwrite},
        validity::{Rfc3339, Validity},
    },
};

/// Where the CA is unless said otherwise.
pub const PKI_DIR: &str = "/etc/fabric/pki";

const INIT_HELP: &str = "\
Examples:
  fabric pki init
  fabric pki init --dir ./pki --name prod.example --days 1825

The key is written with mode 0600. Whoever has it can make nodes: keep it off the workers.";

const ISSUE_HELP: &str = "\
Examples:
  fabric pki issue worker-a
  fabric pki issue worker-a --dir ./pki --out ./worker-a --days 90

Writes worker-a.pem, worker-a-key.pem (mode 0600) and ca.pem: what the daemon of worker-a needs.";

/// What to do with the CA.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Makes the cluster's CA.
    #[command(after_help = INIT_HELP)]
    Init(InitArgs),
    /// Makes the certificate of one node.
    #[command(after_help = ISSUE_HELP)]
    Issue(IssueArgs),
}

/// Arguments of `fabric pki init`.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// Directory of the CA.
    #[arg(long, default_value = PKI_DIR)]
    pub dir: PathBuf,
    /// Name of the CA, which is the trust domain of all its nodes.
    #[arg(long, default_value = "fabric")]
    pub name: String,
    /// Lifetime in days.
    #[arg(long, default_value_t = AUTHORITY_DAYS, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    pub days: u32,
    /// Replace an existing CA; all its nodes must then be issued anew.
    #[arg(long)]
    pub force: bool,
    /// Check and say what would be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `fabric pki issue`.
#[derive(Debug, clap::Args)]
pub struct IssueArgs {
    /// Name of the node, as in the cluster's state.
    pub node: String,
    /// Directory of the CA.
    #[arg(long, default_value = PKI_DIR)]
    pub dir: PathBuf,
    /// Directory to write to [default: the CA's].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Lifetime in days; never beyond the CA's.
    #[arg(long, default_value_t = NODE_DAYS, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    pub days: u32,
    /// Replace existing files of this node.
    #[arg(long)]
    pub force: bool,
    /// Check and say what would be done, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs `fabric pki`.
///
/// # Errors
///
/// Something exists already, is missing, or cannot be written.
pub fn run(command: PkiCommand, output: Output) -> Result<ExitCode, Failure> {
    let document = match command {
        PkiCommand::Init(args) => init(&args)?,
        PkiCommand::Issue(args) => issue(&args, output)?,
    };
    // For people it is talk that may be silenced; programs asked for the document.
    if !(output.quiet && matches!(output.format, Format::Table | Format::Wide)) {
        output.document(&document)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What was made.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    name: String,
    verb: &'static str,
    dry_run: bool,
    not_before: String,
    not_after: String,
    files: Vec<PathBuf>,
}

impl Show for Made {
    fn show(&self, wide: bool) -> String {
        let dry_run = if self.dry_run { " (dry run)" } else { "" };
        let mut text = format!("{} {}{dry_run}\n", self.name, self.verb);
        if wide {
            for file in &self.files {
                text.push_str(&format!("{}\n", file.display()));
            }
        }
        text
    }
}

fn made(
    kind: &str,
    name: String,
    verb: &'static str,
    dry_run: bool,
    validity: Validity,
    files: Vec<PathBuf>,
) -> Document<Made> {
    Document {
        api_version: API_VERSION.to_owned(),
        kind: kind.to_owned(),
        content: Made {
            name,
            verb,
            dry_run,
            not_before: Rfc3339(validity.not_before).to_string(),
            not_after: Rfc3339(validity.not_after).to_string(),
            files,
        },
    }
}

fn init(args: &InitArgs) -> Result<Document<Made>, Failure> {
    let overwrite = overwrite(args.force);
    let authority = if args.dry_run {
        files::ensure_authority_absent(&args.dir, overwrite).context("pki init")?;
        authority::init(&args.name, args.days).context("pki init")?
    } else {
        files::init_dir(&args.dir, &args.name, args.days, overwrite).context("pki init")?
    };
    Ok(made(
        "CertificateAuthority",
        format!("ca/{}", authority.trust_domain()),
        "created",
        args.dry_run,
        authority.validity(),
        vec![args.dir.join(CA_CERTIFICATE), args.dir.join(CA_KEY)],
    ))
}

fn issue(args: &IssueArgs, output: Output) -> Result<Document<Made>, Failure> {
    let node = NodeId::new(&args.node).map_err(|e| anyhow::anyhow!("pki issue: {e}"))?;
    let out: &Path = args.out.as_deref().unwrap_or(&args.dir);
    let overwrite = overwrite(args.force);
    let (paths, credentials) = if args.dry_run {
        let authority = files::load_authority(&args.dir).context("pki issue")?;
        let credentials = authority::issue(&authority, &node, args.days).context("pki issue")?;
        files::ensure_node_absent(&credentials, out, overwrite).context("pki issue")?;
        (NodeFiles::within(out, &node), credentials)
    } else {
        files::issue_dir(&args.dir, &node, out, args.days, overwrite).context("pki issue")?
    };
    let validity = credentials.validity;
    let lifetime = validity.not_after.saturating_sub(validity.not_before);
    if lifetime < i64::from(args.days).saturating_mul(Validity::DAY_SECONDS) {
        output.say(&format!(
            "certificate/{node} ends with its CA, at {}: sooner than the {} days asked for",
            Rfc3339(validity.not_after),
            args.days
        ));
    }
    Ok(made(
        "NodeCertificate",
        format!("certificate/{node}"),
        "issued",
        args.dry_run,
        validity,
        vec![paths.certificate, paths.key, paths.ca],
    ))
}

fn overwrite(force: bool) -> Overwrite {
    if force { Overwrite::Yes } else { Overwrite::No }
}
