//! The lab itself, with machines: both boot, answer, reach each other, and everything that can be done to them is done.

fn main() {}
