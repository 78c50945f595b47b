//! The underlay of the simulation: delays every record, loses some.

use std::{collections::VecDeque, time::Duration};

use fabric_core::testing::packets::Generator;

use super::{Record, Underlay};

pub(super) struct Wire {
    underlay: Underlay,
    random: Generator,
    /// In the order of arrival, for the delay is the same for all.
    flying: VecDeque<(Duration, usize, usize, Record)>,
}

impl Wire {
    pub(super) fn new(underlay: Underlay, random: Generator) -> Self {
        Self {
            underlay,
            random,
            flying: VecDeque::new(),
        }
    }

    /// False if the record is lost.
    pub(super) fn send(&mut self, now: Duration, to: usize, from: usize, record: Record) -> bool {
        let loss = self.underlay.loss_one_in;
        if loss > 0 && self.random.one_in(loss) {
            return false;
        }
        self.flying
            .push_back((now + self.underlay.delay, to, from, record));
        true
    }

    /// The next record that has arrived: where, from where, what.
    pub(super) fn next_due(&mut self, now: Duration) -> Option<(usize, usize, Record)> {
        if self.flying.front().is_none_or(|(due, ..)| *due > now) {
            return None;
        }
        self.flying
            .pop_front()
            .map(|(_, to, from, record)| (to, from, record))
    }
}
