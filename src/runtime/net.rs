//! Listening sockets and the socket options that both ends use.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::limits::Ports;

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Tries to find a free port outside the ephemeral range.
const PORT_TRIES: usize = 32;

/// Lowest port that port 0 may become.
const PORT_MIN: u16 = 10_000;

/// Binds a listening socket with address reuse and a long backlog. Port 0 takes any free port, outside the ephemeral range
/// where there is one: in it, a load test's own outgoing connections would sit on the ports of servers that restart.
///
/// # Errors
/// The operating system's, such as "address in use".
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.port() == 0 {
        let ports = Ports::read();
        for _ in 0..PORT_TRIES {
            let Some(port) = ports.listener(PORT_MIN, rand::random()) else { break };
            if let Ok(listener) = bind(SocketAddr::new(address.ip(), port), false) {
                return Ok(listener);
            }
        }
    }
    bind(address, true)
}

/// The address under which this machine is reached from others: that of the way out of it, or loopback where there is none.
#[must_use]
pub fn own_address() -> IpAddr {
    // No packet is sent: the kernel only picks the source address of the way. Source: 192.0.2.0/24 is for documentation, RFC 5737.
    let way_out = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    way_out.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

/// Without address reuse a port counts as taken for a while after its last connection. What is accepted takes the setting
/// over from the listener, and a connection that ended without it keeps the port from the next process at this address: so it
/// is set in any case once the port is there.
fn bind(address: SocketAddr, reuse: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(reuse)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.set_reuse_address(true)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to `host:port`, from an address of this machine where one is given.
///
/// The port at that address is chosen when the connection is made rather than when it is bound, so that it only has to
/// be free towards this destination: as many connections as there are ports go from each address to each server. Source:
/// `IP_BIND_ADDRESS_NO_PORT` in `ip(7)`.
///
/// # Errors
/// The operating system's, such as "connection refused"; "cannot assign requested address" when all ports are taken.
pub async fn connect(authority: &str, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(authority).await };
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, format!("{authority} has no address like {source}"));
    for address in tokio::net::lookup_host(authority).await?.filter(|a| a.is_ipv4() == source.is_ipv4()) {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        nix::sys::socket::setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(source, 0))?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether a `host:port` is an address of this machine. One that can't be resolved is not.
pub async fn is_of_this_machine(authority: &str) -> bool {
    let Ok(addresses) = tokio::net::lookup_host(authority).await else { return false };
    // The kernel binds nothing but its own addresses.
    let is_own = |address: SocketAddr| std::net::UdpSocket::bind(SocketAddr::new(address.ip(), 0)).is_ok();
    addresses.into_iter().any(is_own)
}

/// Small frames go out at once.
pub fn set_options(stream: &TcpStream) {
    // A socket that was closed meanwhile refuses; its next read says so.
    let _ = stream.set_nodelay(true);
}

/// Time without a word after which the system asks whether the other end is still there, between two such questions, and how
/// many it leaves without an answer.
const KEEP_ALIVE_TIME: Duration = Duration::from_secs(20);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TRIES: u32 = 3;

/// Has the system end a connection whose other end is gone without a word, within a minute.
pub fn keep_alive(stream: &TcpStream) {
    let asks = TcpKeepalive::new()
        .with_time(KEEP_ALIVE_TIME)
        .with_interval(KEEP_ALIVE_INTERVAL)
        .with_retries(KEEP_ALIVE_TRIES);
    // A socket that was closed meanwhile refuses; its next read says so.
    let _ = SockRef::from(stream).set_tcp_keepalive(&asks);
}

/// Reads what there is. Where that is less than the buffer holds, it was all: the next wait for readiness sleeps, and no second
/// call finds out that there is nothing.
///
/// # Errors
/// The operating system's; `WouldBlock` where there is nothing.
pub fn try_read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut all = None;
    let read = stream.try_io(Interest::READABLE, || {
        let read = (&*SockRef::from(stream)).read(buffer)?;
        if read == 0 || read == buffer.len() {
            return Ok(read);
        }
        all = Some(read);
        // The only way to say that the socket is drained. What comes from now on makes it ready again.
        Err(io::ErrorKind::WouldBlock.into())
    });
    all.map_or(read, Ok)
}

/// Makes every pending and later read and write of the socket end, from any task.
pub fn abort(stream: &TcpStream) {
    // Fails only when the peer has closed already, which is what we want.
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Both);
}

/// Tells the peer that nothing more will be written.
pub fn finish_writing(stream: &TcpStream) {
    // Fails only when the peer has closed already, which is what we want.
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
}

/// True for errors of `accept` that pass by themselves and must not end a listener.
#[must_use]
pub fn is_transient_accept_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    ) || matches!(error.raw_os_error(), Some(23 | 24)) // ENFILE, EMFILE
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::is_of_this_machine;

    #[tokio::test]
    async fn a_server_that_ended_with_open_connections_comes_back_at_its_port() {
        let listener = super::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let client = tokio::net::TcpStream::connect(address).await.expect("connects");
        let (accepted, _) = listener.accept().await.expect("accepts");
        // The server ends first: its side of the connection stays for a minute.
        drop((accepted, listener));
        let mut byte = [0];
        assert_eq!(tokio::io::AsyncReadExt::read(&mut { client }, &mut byte).await.expect("reads"), 0);
        super::listen(address).expect("the port is free for the next one");
    }

    #[tokio::test]
    async fn a_short_read_drains_a_socket_and_loses_nothing() {
        let listener = super::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        let (server, _) = listener.accept().await.expect("accepts");
        let mut buffer = [0; 4];
        for (sent, reads) in [(&b"ab"[..], vec![2]), (b"abcdef", vec![4, 2]), (b"abcd", vec![4])] {
            client.write_all(sent).await.expect("writes");
            for wanted in reads {
                server.readable().await.expect("is there");
                assert_eq!(super::try_read(&server, &mut buffer).expect("reads"), wanted);
            }
        }
        let nothing = super::try_read(&server, &mut buffer).expect_err("nothing");
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        client.write_all(b"z").await.expect("writes");
        drop(client);
        for wanted in [1, 0] {
            server.readable().await.expect("is there");
            assert_eq!(super::try_read(&server, &mut buffer).expect("reads"), wanted, "the end is found as well");
        }
    }

    #[tokio::test]
    async fn the_system_looks_for_an_end_that_is_gone() {
        let listener = super::listen("127.0.0.1:0".parse().expect("valid")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let (stream, _) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
        let stream = stream.expect("connects");
        super::keep_alive(&stream);
        let socket = super::SockRef::from(&stream);
        assert!(socket.keepalive().expect("told"));
        assert_eq!(socket.tcp_keepalive_time().expect("told"), super::KEEP_ALIVE_TIME);
    }

    #[tokio::test]
    async fn loopback_is_here_and_documentation_is_not() {
        assert!(is_of_this_machine("127.0.0.1:80").await && is_of_this_machine("[::1]:80").await);
        assert!(!is_of_this_machine("192.0.2.1:80").await && !is_of_this_machine("no address").await);
    }
}
