//! `chatctl config haproxy`: configurations of other programs, made from a running stack.

use std::net::SocketAddr;

use chatctl::stack::haproxy;
use chatctl::stack::processes::Status;
use chatctl::stack::processes::control::{Client, Request};
use clap::Subcommand;

use crate::cli::StackLocation;
use crate::exit::{self, Failure};
use crate::output::out;
use crate::process::block_on;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// An HAProxy configuration that does the gateway's job for the running stack
    Haproxy(HaproxyArgs),
}

#[derive(clap::Args)]
struct HaproxyArgs {
    #[command(flatten)]
    at: StackLocation,
    /// Where it listens for HTTP
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7190")]
    http: SocketAddr,
    /// Where it listens for WebSockets
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7191")]
    chat: SocketAddr,
}

pub(crate) fn run(args: Args) -> Result<u8, Failure> {
    let What::Haproxy(args) = args.what;
    let status: Status =
        block_on(async { Ok(Client::connect(&args.at.stack).await?.ask(&Request::Status, |_| ()).await?) })?;
    let servers = status
        .servers
        .into_iter()
        .filter_map(|server| Some(haproxy::Backend { name: server.name, role: server.role, address: server.address? }));
    out!("{}", haproxy::render(args.http, args.chat, &servers.collect::<Vec<_>>()));
    Ok(exit::PASS)
}
