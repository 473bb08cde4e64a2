//! Memory of an idle, logged-in connection: `cargo bench --bench connections`.
//!
//! Starts a stack in this process and a child process that connects (itself, with `--clients`), and looks at how the resident
//! memory of this process grows with each thousand connections. Session, inbox subscription and presence are in it; the
//! kernel's socket buffers are not resident memory of a process. The child's growth is the memory of a bare client link.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use chatctl::protocol::DeviceName;
use chatctl::runtime::machine;
use chatctl::server::access::auth::Tokens;
use chatctl::server::access::keys::{Keys, Purpose};
use chatctl::stack::{Config, Stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections per step; the first step warms up pools and arenas and is not counted.
const STEP: usize = 3_000;
const STEPS: usize = 5;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("starts");
    match args.iter().position(|a| a == "--clients") {
        Some(at) => runtime.block_on(clients(&args[at + 1], &args[at + 2])),
        None => runtime.block_on(server()),
    }
}

async fn server() {
    // With huge pages the answer would come in steps of 2 MiB, 175 bytes of each connection.
    machine::avoid_huge_pages();
    let limit = machine::raise_open_files();
    assert!(limit as usize > STEP * STEPS + 500, "needs {} open files, {limit} are allowed", STEP * STEPS + 500);
    let stack = Stack::start(Config { chat_servers: 1, ..Config::default() }).await.expect("starts");
    let address =
        stack.nodes().into_iter().find(|n| n.role.name() == "chat").and_then(|n| n.address).expect("is there");
    let secret = stack.data().join("secret").display().to_string();
    let mut child = Command::new(std::env::current_exe().expect("has a path"))
        .args(["--clients", &address.to_string(), &secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut before = 0;
    let mut first = 0;
    println!("{:>12} {:>16} {:>22}", "connections", "resident, MiB", "bytes per connection");
    for step in 0..STEPS {
        writeln!(stdin, "{STEP}").expect("writes");
        lines.next().expect("answers").expect("text");
        // Beats and flushes of soft state settle.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let resident = machine::resident_bytes().expect("/proc is there");
        let per_connection = (resident.saturating_sub(before)) as usize / STEP;
        let shown = if step == 0 { "(warm-up)".to_owned() } else { per_connection.to_string() };
        println!("{:>12} {:>16.1} {shown:>22}", (step + 1) * STEP, resident as f64 / 1_048_576.0);
        if step == 0 {
            first = resident;
        }
        before = resident;
    }
    // Tables grow in jumps, so the mean over all steps says more than any one of them.
    let mean = before.saturating_sub(first) as usize / (STEP * (STEPS - 1));
    println!("mean: {mean} bytes per idle, logged-in connection");
    drop(stdin);
    child.wait().expect("ends");
    stack.stop().await;
}

/// Connects as many users as each line of standard input says, with tokens made from the deployment's secret.
async fn clients(address: &str, secret: &str) {
    let _ = machine::raise_open_files();
    let secret = std::fs::read(secret).expect("readable").try_into().expect("32 bytes");
    let tokens = Tokens::new(&Keys::derive(&secret, &[], Purpose::Tokens), 3_600);
    let device: DeviceName = "phone".parse().expect("valid");
    let mut sockets = Vec::new();
    for line in std::io::stdin().lines() {
        let count: usize = line.expect("text").parse().expect("a number");
        for _ in 0..count {
            let user = chatctl::protocol::UserId(sockets.len() as u64 + 1);
            let (token, _) = tokens.issue(user, &device);
            sockets.push(connect(address, &token).await);
        }
        println!("connected");
    }
}

async fn connect(address: &str, token: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    // The upgrade and the welcome; their content is the conformance suite's business.
    let mut seen = Vec::new();
    while !seen.windows(9).any(|w| w == b"\"welcome\"") {
        assert!(stream.read_buf(&mut seen).await.expect("reads") > 0, "{}", String::from_utf8_lossy(&seen));
    }
    let beat = chatctl::protocol::websocket::text_frame(r#"{"type":"beat"}"#, Some([1, 2, 3, 4]));
    stream.write_all(&beat).await.expect("writes");
    stream
}
