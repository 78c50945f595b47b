//! Attachments that come and go while daemon and plugin are killed.
