//! The chatctl command.
fn main() {}
