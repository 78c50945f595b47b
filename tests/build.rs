//! Generates the client of the container runtimes' interface from its definition, without `protoc`.
//!
//! `proto/cri/api.proto` comes in, unchanged as published; a Rust module goes out, into Cargo's folder.

/// The definition, and the folder it is relative to.
const DEFINITION: &str = "proto/cri/api.proto";
const FOLDER: &str = "proto/cri";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed={DEFINITION}");
    let mut definition = protox::compile([DEFINITION], [FOLDER])?;
    for file in &mut definition.file {
        // The comments, which are written for another documentation tool.
        file.source_code_info = None;
    }
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(definition)?;
    Ok(())
}
