//! Fuzzing on the stable compiler: seeded inputs in, counted outcomes and named findings out.
//!
//! A [`Target`] is a parser that faces bytes of others, with an oracle of its own; the targets and
//! their corpus are in `tests/fuzz`. A [`campaign`] makes inputs from the corpus ([`mutate`], [`json`],
//! [`call`]), each from seed and number alone, so that any of them can be made again. [`exec`] runs
//! the real plugin. Never done here: coverage feedback, which needs an instrumented compiler; the
//! counted outcomes show instead that nothing worth reaching is missed.

pub mod call;
pub mod campaign;
pub mod corpus;
pub mod exec;
pub mod json;
pub mod mutate;
pub mod oracle;
#[path = "../../fuzz/targets/mod.rs"]
pub mod targets;

use std::borrow::Cow;

use fabric_core::testing::packets::Generator;

/// What became of an input: a name to count it by.
pub type Outcome = Cow<'static, str>;

/// Something that takes bytes of others.
pub trait Target: Sync {
    /// Name on the command line and of the folder in the corpus.
    fn name(&self) -> &'static str;

    /// A new input. The corpus is never empty.
    fn make(&self, corpus: &[Vec<u8>], random: &mut Generator) -> Vec<u8> {
        let mut input = corpus[random.below(corpus.len())].clone();
        mutate::bytes(random, &mut input, corpus);
        input
    }

    /// Runs one input; what became of it. A panic is a finding too.
    ///
    /// # Errors
    ///
    /// What the oracle holds against it.
    fn run(&self, input: &[u8]) -> Result<Outcome, String>;

    /// How many inputs for each thousand of the campaign: what takes files or sockets is slower.
    fn per_mille(&self) -> u64 {
        1_000
    }

    /// Outcomes that a campaign must have reached, or its inputs are of no use.
    fn expected(&self) -> &'static [&'static str];
}
