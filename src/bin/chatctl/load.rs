//! `chatctl load`.

use crate::exit::Failure;

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: Args) -> Result<u8, Failure> {
    Err(Failure::usage("not yet"))
}
