//! The machine that figures belong to, for the reports. Never done here: judging it.

use std::{fs, thread};

use serde::Serialize;

/// What it is called and how large it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Name of the processor.
    pub processor: String,
    /// Processors that this process may use.
    pub processors: usize,
}

impl Machine {
    /// The one that this program runs on.
    ///
    /// # Errors
    ///
    /// The kernel does not tell of its release or of its processors.
    pub fn here() -> anyhow::Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        // Not every architecture names the processor there.
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Ok(Self {
            kernel: kernel.trim().to_owned(),
            processor: processor(&processors)
                .unwrap_or("unknown processor")
                .to_owned(),
            processors: thread::available_parallelism()?.get(),
        })
    }
}

/// The first model name in the text of `/proc/cpuinfo`.
fn processor(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, name)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of the first processor counts; where none has a name, there is none.
    #[test]
    fn processors_have_names() {
        let text =
            "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some: CPU \n\nmodel name\t: other\n";
        assert_eq!(processor(text), Some("Some: CPU"));
        assert_eq!(processor("processor\t: 0\n"), None);
    }
}
