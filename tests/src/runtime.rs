//! Container runtimes started by a test, each private to one worker of a lab, and what they may leave behind.
