//! An error in one line, for logs and people.

/// An error with its causes, each said once: many name their cause in their own text.
#[must_use]
pub fn with_causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            said if said.contains(&cause) => text,
            said => format!("{said}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {

    use super::with_causes;

    /// A cause that the text above it names already is not said twice; others follow in order.
    #[test]
    fn causes_are_said_once() {
        let cause = || anyhow::Error::msg("no such file");
        let error = cause()
            .context("cannot read a: no such file; name another")
            .context("start");
        assert_eq!(
            with_causes(&error),
            "start: cannot read a: no such file; name another"
        );
        let error = cause().context("reading b");
        assert_eq!(with_causes(&error), "reading b: no such file");
    }
}
